-- Cumulative counters of every database; session counters exist from 14.
-- since: 13
-- cost: a row for each database
-- privilege: none
/* pgvacancy:counters_13 */
SELECT d.datname,
       d.numbackends,
       d.xact_commit + d.xact_rollback,
       NULL::pg_catalog.int8,
       NULL::pg_catalog.int8,
       NULL::pg_catalog.int8,
       NULL::pg_catalog.int8,
       NULL::pg_catalog.float8,
       NULL::pg_catalog.float8,
       NULL::pg_catalog.float8
  FROM pg_catalog.pg_stat_database AS d
 WHERE d.datname IS NOT NULL

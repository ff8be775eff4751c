-- Cumulative counters of every database.
-- since: 14
-- cost: a row for each database
-- privilege: none
/* pgvacancy:counters */
SELECT d.datname,
       d.numbackends,
       d.xact_commit + d.xact_rollback,
       d.sessions,
       d.sessions_abandoned,
       d.sessions_fatal,
       d.sessions_killed,
       d.session_time,
       d.active_time,
       d.idle_in_transaction_time
  FROM pg_catalog.pg_stat_database AS d
 WHERE d.datname IS NOT NULL

-- Every client backend and walsender, and every row that privileges hide.
-- since: 13
-- cost: copies the backend status array once; about 1 kB + track_activity_query_size for each slot; date_part and
--   octet_length are there because extract() makes a numeric first and left() walks through every character
-- privilege: pg_read_all_stats (member of pg_monitor); without it rows of other roles are hidden
/* pgvacancy:activity_13 */
SELECT a.pid,
       pg_catalog.date_part('epoch', a.backend_start),
       a.backend_type,
       a.usename,
       a.datname,
       a.application_name,
       pg_catalog.host(a.client_addr),
       a.client_port,
       a.state,
       pg_catalog.date_part('epoch', a.state_change),
       pg_catalog.date_part('epoch', a.xact_start),
       pg_catalog.date_part('epoch', a.query_start),
       a.wait_event_type,
       a.wait_event,
       CASE WHEN pg_catalog.octet_length(a.query) <= 300 THEN a.query ELSE pg_catalog."left"(a.query, 300) END,
       NULL::pg_catalog.int8,
       a.backend_xmin IS NOT NULL,
       a.pid = pg_catalog.pg_backend_pid(),
       pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())
  FROM pg_catalog.pg_stat_activity AS a
 WHERE a.backend_type IS NULL OR a.backend_type IN ('client backend', 'walsender')

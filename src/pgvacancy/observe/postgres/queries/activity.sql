-- Every client backend and walsender, and every row that privileges hide.
-- since: 14
-- cost: copies the backend status array once; about 1 kB + track_activity_query_size for each slot
-- privilege: pg_read_all_stats (member of pg_monitor); without it rows of other roles are hidden
/* pgvacancy:activity */
SELECT a.pid,
       extract(epoch FROM a.backend_start)::pg_catalog.float8,
       a.backend_type,
       a.usename,
       a.datname,
       a.application_name,
       pg_catalog.host(a.client_addr),
       a.client_port,
       a.state,
       extract(epoch FROM a.state_change)::pg_catalog.float8,
       extract(epoch FROM a.xact_start)::pg_catalog.float8,
       extract(epoch FROM a.query_start)::pg_catalog.float8,
       a.wait_event_type,
       a.wait_event,
       pg_catalog."left"(a.query, 300),
       a.query_id,
       a.backend_xmin IS NOT NULL,
       a.pid = pg_catalog.pg_backend_pid(),
       extract(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8
  FROM pg_catalog.pg_stat_activity AS a
 WHERE a.backend_type IS NULL OR a.backend_type IN ('client backend', 'walsender')

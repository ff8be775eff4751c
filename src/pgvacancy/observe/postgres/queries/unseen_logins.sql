-- Pids of log-ins that hold a slot but show nothing in pg_stat_activity: no row yet (17), or a row whose role is not
-- known yet and which only pg_read_all_stats may read (18). InitPostgres opens a transaction, and so takes a virtualxid
-- lock, before authentication. From 17 on a virtual transaction is numbered by the place of its process, and client
-- backends have the first max_connections places: unfinished replication log-ins and workers stand behind them.
-- since: 17
-- cost: reads the lock table once, all partitions
-- privilege: none
/* pgvacancy:unseen_logins */
SELECT DISTINCT l.pid
  FROM pg_catalog.pg_locks AS l
  LEFT JOIN pg_catalog.pg_stat_activity AS a USING (pid)
 WHERE l.locktype = 'virtualxid' AND l.pid IS NOT NULL
   AND a.backend_type IS NULL AND a.usesysid IS NULL
   AND pg_catalog.split_part(l.virtualtransaction, '/', 1)::pg_catalog.int4
       < pg_catalog.current_setting('max_connections')::pg_catalog.int4

-- Pids of log-ins that hold a slot but have no row in pg_stat_activity yet (up to 17): InitPostgres opens a
-- transaction, and so takes a virtualxid lock, before authentication.
-- since: 13
-- cost: reads the lock table once, all partitions
-- privilege: none
/* pgvacancy:unseen_logins */
SELECT DISTINCT l.pid
  FROM pg_catalog.pg_locks AS l
  LEFT JOIN pg_catalog.pg_stat_activity AS a USING (pid)
 WHERE l.locktype = 'virtualxid' AND l.pid IS NOT NULL AND a.pid IS NULL

-- Pids of log-ins that hold a slot but have no row in pg_stat_activity yet: InitPostgres opens a transaction, and so
-- takes a virtualxid lock, before authentication. A replication client that is still logging in cannot be told from
-- them here and counts too; nor can a worker in the milliseconds of its start.
-- since: 13
-- cost: reads the lock table once, all partitions
-- privilege: none
/* pgvacancy:unseen_logins_13 */
SELECT DISTINCT l.pid
  FROM pg_catalog.pg_locks AS l
  LEFT JOIN pg_catalog.pg_stat_activity AS a USING (pid)
 WHERE l.locktype = 'virtualxid' AND l.pid IS NOT NULL AND a.pid IS NULL

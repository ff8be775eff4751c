-- Who blocks whom, soft blocks (a queue behind a waiting DDL) included. Asked only for sessions that wait for
-- a lock, at most the given number of them, because pg_blocking_pids takes every lock partition for each.
-- since: 13
-- cost: one pass over the lock table for each waiting session
-- privilege: none for the pids
/* pgvacancy:lock_waits_13 */
SELECT w.pid,
       pg_catalog.pg_blocking_pids(w.pid),
       NULL::pg_catalog.float8,
       (SELECT pg_catalog.min(l.mode) FROM pg_catalog.pg_locks AS l WHERE l.pid = w.pid AND NOT l.granted)
  FROM pg_catalog.unnest(%(pids)s::pg_catalog.int4[]) AS w(pid)

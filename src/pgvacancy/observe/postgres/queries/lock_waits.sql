-- Who blocks whom, soft blocks (a queue behind a waiting DDL) included. Asked only for sessions that wait for
-- a lock, at most the given number of them, because pg_blocking_pids takes every lock partition for each.
-- since: 14
-- cost: one pass over the lock table for each waiting session
-- privilege: none for the pids
/* pgvacancy:lock_waits */
SELECT w.pid,
       pg_catalog.pg_blocking_pids(w.pid),
       (SELECT extract(epoch FROM pg_catalog.min(l.waitstart))::pg_catalog.float8
          FROM pg_catalog.pg_locks AS l WHERE l.pid = w.pid AND NOT l.granted),
       (SELECT pg_catalog.min(l.mode) FROM pg_catalog.pg_locks AS l WHERE l.pid = w.pid AND NOT l.granted)
  FROM pg_catalog.unnest(%(pids)s::pg_catalog.int4[]) AS w(pid)

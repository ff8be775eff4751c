-- Who blocks whom, soft blocks (a queue behind a waiting DDL) included. Asked only for sessions that wait for
-- a lock, at most the given number of them, because pg_blocking_pids takes every lock partition for each.
-- since: 14
-- cost: one look at the lock table for each waiting session, and one pass over it for all
-- privilege: none for the pids
/* pgvacancy:lock_waits */
SELECT w.pid,
       pg_catalog.pg_blocking_pids(w.pid),
       l.wait_start_at,
       l.mode
  FROM pg_catalog.unnest(%(pids)s::pg_catalog.int4[]) AS w(pid)
  LEFT JOIN (SELECT k.pid,
                    pg_catalog.date_part('epoch', pg_catalog.min(k.waitstart)) AS wait_start_at,
                    pg_catalog.min(k.mode) AS mode
               FROM pg_catalog.pg_locks AS k
              WHERE NOT k.granted
              GROUP BY k.pid) AS l ON l.pid = w.pid

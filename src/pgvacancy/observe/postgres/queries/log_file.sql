-- Where the server's own log collector writes, and how large that file is.
-- since: 13
-- cost: one stat() call
-- privilege: pg_monitor for the name, pg_read_server_files (or superuser) for the size
/* pgvacancy:log_file */
SELECT f.name, s.size, s.modification IS NOT NULL
  FROM (SELECT pg_catalog.pg_current_logfile() AS name) AS f,
       pg_catalog.pg_stat_file(f.name) AS s
 WHERE f.name IS NOT NULL

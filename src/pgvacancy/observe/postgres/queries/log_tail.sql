-- The end of the server's log, as bytes.
-- since: 13
-- cost: reads at most the given number of bytes
-- privilege: pg_read_server_files or superuser
/* pgvacancy:log_tail */
SELECT pg_catalog.pg_read_binary_file(%(name)s, %(offset)s, %(length)s)

-- What does not change while we look.
-- since: 13
-- cost: negligible
-- privilege: none
/* pgvacancy:facts */
SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
       pg_catalog.current_setting('server_version'),
       pg_catalog.pg_is_in_recovery(),
       extract(epoch FROM pg_catalog.pg_postmaster_start_time())::pg_catalog.float8,
       current_user,
       pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'),
       (SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user),
       pg_catalog.pg_backend_pid(),
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_xacts)::pg_catalog.int4

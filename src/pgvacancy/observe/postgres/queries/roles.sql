-- Login roles and the attributes that decide which slots they may take.
-- since: 16
-- cost: a row for each login role
-- privilege: none
/* pgvacancy:roles */
SELECT r.rolname, r.rolsuper, r.rolreplication,
       pg_catalog.pg_has_role(r.oid, 'pg_use_reserved_connections', 'USAGE'),
       r.rolconnlimit
  FROM pg_catalog.pg_roles AS r
 WHERE r.rolcanlogin
 ORDER BY r.rolname
 LIMIT 5000

-- Login roles and the attributes that decide which slots they may take; reserved_connections exists from 16.
-- since: 13
-- cost: a row for each login role
-- privilege: none
/* pgvacancy:roles_13 */
SELECT r.rolname, r.rolsuper, r.rolreplication, false, r.rolconnlimit
  FROM pg_catalog.pg_roles AS r
 WHERE r.rolcanlogin
 ORDER BY r.rolname
 LIMIT 5000

-- Databases and their connection limits.
-- since: 13
-- cost: a row for each database
-- privilege: none
/* pgvacancy:databases */
SELECT d.datname, d.datconnlimit, d.datallowconn
  FROM pg_catalog.pg_database AS d
 ORDER BY d.datname
 LIMIT 5000

-- Identifies the cluster, so that a plan cannot reach another server.
-- since: 13
-- cost: reads the control file
-- privilege: execute on pg_control_system()
/* pgvacancy:system_identifier */
SELECT s.system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system() AS s

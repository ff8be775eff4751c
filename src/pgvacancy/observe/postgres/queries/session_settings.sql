-- Makes our own session harmless: it reads only, waits for nobody, and no timeout meant for others ends it.
-- since: 13
-- cost: none
-- privilege: none
/* pgvacancy:session_settings */
SELECT pg_catalog.set_config(v.name, v.value, false)
  FROM (VALUES ('default_transaction_read_only', 'on'), ('statement_timeout', '5s'), ('lock_timeout', '200ms'),
               ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'), ('jit', 'off')) AS v(name, value)
 WHERE EXISTS (SELECT FROM pg_catalog.pg_settings AS s WHERE s.name = v.name)

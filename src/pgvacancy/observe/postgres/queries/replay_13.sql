-- Whether a standby has stopped replaying.
-- since: 13
-- cost: negligible
-- privilege: none
/* pgvacancy:replay_13 */
SELECT CASE WHEN pg_catalog.pg_is_wal_replay_paused() THEN 'paused' ELSE 'not paused' END

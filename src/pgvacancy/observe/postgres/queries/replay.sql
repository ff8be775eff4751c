-- Whether a standby has stopped replaying.
-- since: 14
-- cost: negligible
-- privilege: none
/* pgvacancy:replay */
SELECT pg_catalog.pg_get_wal_replay_pause_state()

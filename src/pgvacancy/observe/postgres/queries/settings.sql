-- The settings that decide about slots, and where each comes from.
-- since: 13
-- cost: reads all settings once
-- privilege: none
/* pgvacancy:settings */
SELECT s.name, s.setting, s.source
  FROM pg_catalog.pg_settings AS s
 WHERE s.name IN (
       'max_connections', 'superuser_reserved_connections', 'reserved_connections', 'max_wal_senders',
       'max_worker_processes', 'max_prepared_transactions', 'max_locks_per_transaction', 'max_replication_slots',
       'authentication_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout',
       'transaction_timeout', 'statement_timeout', 'tcp_keepalives_idle', 'tcp_keepalives_interval',
       'tcp_keepalives_count', 'tcp_user_timeout', 'client_connection_check_interval', 'track_activities',
       'shared_buffers', 'work_mem', 'cluster_name', 'port', 'log_destination', 'logging_collector',
       'log_line_prefix', 'log_connections', 'hot_standby', 'wal_level', 'allow_alter_system',
       'server_version', 'server_version_num', 'lc_messages', 'data_directory', 'unix_socket_directories')
    OR s.name LIKE 'rds.%' OR s.name LIKE 'azure.%' OR s.name LIKE 'cnpg.%' OR s.name LIKE 'cloudsql.%'

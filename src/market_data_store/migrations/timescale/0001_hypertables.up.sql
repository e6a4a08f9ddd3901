-- Where TimescaleDB (2.11 or newer) is installed: bars in chunks of seven days. The primary key is
-- all that bars are looked up by, so the index on time alone, made by default, is left out.
SELECT create_hypertable('bars_ohlcv', 'ts', chunk_time_interval => INTERVAL '7 days',
    create_default_indexes => false, migrate_data => true, if_not_exists => true);

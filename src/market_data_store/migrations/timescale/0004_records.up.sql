-- Signals and options in chunks of seven days, too; their keys hold the time, as those of
-- hypertables must. The key of news does not: a message that is published again, at another time,
-- is the same. Fundamentals are a few rows a year over decades, for which chunks of a week would
-- be mostly empty, and job runs are few: all three stay as they are.
SELECT create_hypertable('signals', 'ts', chunk_time_interval => INTERVAL '7 days',
    create_default_indexes => false, migrate_data => true, if_not_exists => true);
SELECT create_hypertable('options_snap', 'ts', chunk_time_interval => INTERVAL '7 days',
    create_default_indexes => false, migrate_data => true, if_not_exists => true);
DO $$
BEGIN
    IF current_setting('timescaledb.license', true) IS DISTINCT FROM 'apache' THEN
        ALTER TABLE signals SET (timescaledb.compress,
            timescaledb.compress_segmentby = 'provider, symbol, name',
            timescaledb.compress_orderby = 'ts');
        PERFORM add_compression_policy('signals', INTERVAL '30 days', if_not_exists => true);
    END IF;
END $$;

-- Chunks older than ninety days are compressed, each series by itself. The Apache edition of the
-- extension cannot do that, and is left as it is.
DO $$
BEGIN
    IF current_setting('timescaledb.license', true) IS DISTINCT FROM 'apache' THEN
        ALTER TABLE bars_ohlcv SET (timescaledb.compress,
            timescaledb.compress_segmentby = 'provider, symbol, interval',
            timescaledb.compress_orderby = 'ts');
        PERFORM add_compression_policy('bars_ohlcv', INTERVAL '90 days', if_not_exists => true);
    END IF;
END $$;

DO $$
BEGIN
    IF current_setting('timescaledb.license', true) IS DISTINCT FROM 'apache' THEN
        PERFORM remove_compression_policy('bars_ohlcv', if_exists => true);
        PERFORM decompress_chunk(c, if_compressed => true) FROM show_chunks('bars_ohlcv') AS c;
        ALTER TABLE bars_ohlcv SET (timescaledb.compress = false);
    END IF;
END $$;

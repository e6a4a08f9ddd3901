-- Roll-ups for dashboards: the views of these names become continuous aggregates. They are
-- refreshed in the background wherever bars were added, replaced or deleted, and what is newer is
-- added when they are read. Their sums are float64 sums of rounded bars, so they are no substitute
-- for bars of these lengths computed from the events, which are exact. The Apache edition of the
-- extension has none, and keeps the views.
DO $$
DECLARE
    rollup record;
BEGIN
    IF current_setting('timescaledb.license', true) IS NOT DISTINCT FROM 'apache' THEN
        RETURN;
    END IF;
    FOR rollup IN
        SELECT * FROM (VALUES
            ('1m', INTERVAL '1 minute'), ('5m', INTERVAL '5 minutes'),
            ('1h', INTERVAL '1 hour'), ('1d', INTERVAL '1 day')
        ) AS wanted (name, width)
    LOOP
        EXECUTE format('DROP VIEW IF EXISTS %I', 'bars_' || rollup.name);
        EXECUTE format($view$
            CREATE MATERIALIZED VIEW %I
            WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
            SELECT provider, symbol, interval AS base_interval, time_bucket(%L::interval, ts) AS ts,
                first(open, ts) AS open, max(high) AS high, min(low) AS low,
                last(close, ts) AS close, sum(volume) AS volume,
                sum(vwap * volume) / nullif(sum(volume), 0) AS vwap,
                sum(trade_count) AS trade_count
            FROM bars_ohlcv
            GROUP BY provider, symbol, interval, time_bucket(%L::interval, ts)
            WITH NO DATA $view$,
            'bars_' || rollup.name, rollup.width, rollup.width);
        PERFORM add_continuous_aggregate_policy(format('%I', 'bars_' || rollup.name)::regclass,
            start_offset => NULL, end_offset => rollup.width,
            schedule_interval => greatest(rollup.width, INTERVAL '5 minutes'));
    END LOOP;
END $$;

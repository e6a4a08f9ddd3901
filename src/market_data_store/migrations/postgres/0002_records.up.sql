-- What is written and read beside bars. Numbers are refused unless they are finite: NaN is greater
-- than every other number here.
CREATE TABLE signals (
    provider   text COLLATE "C" NOT NULL CHECK (provider <> ''),
    symbol     text COLLATE "C" NOT NULL CHECK (symbol <> ''),
    ts         timestamptz      NOT NULL,
    name       text COLLATE "C" NOT NULL CHECK (name <> ''),
    value      float8           NOT NULL CHECK (value > '-Infinity' AND value < 'Infinity'),
    score      float8 CHECK (score > '-Infinity' AND score < 'Infinity'),
    state      text COLLATE "C" NOT NULL CHECK (state IN ('active', 'retracted')),
    metadata   jsonb            NOT NULL,
    created_at timestamptz      NOT NULL,
    PRIMARY KEY (provider, symbol, ts, name)
);
CREATE INDEX signals_ts ON signals (ts);

CREATE TABLE options_snap (
    provider    text COLLATE "C" NOT NULL CHECK (provider <> ''),
    symbol      text COLLATE "C" NOT NULL CHECK (symbol <> ''),
    expiry      date             NOT NULL,
    option_type text COLLATE "C" NOT NULL CHECK (option_type IN ('C', 'P')),
    strike      float8           NOT NULL CHECK (strike > '-Infinity' AND strike < 'Infinity'),
    ts          timestamptz      NOT NULL,
    bid         float8 CHECK (bid > '-Infinity' AND bid < 'Infinity'),
    ask         float8 CHECK (ask > '-Infinity' AND ask < 'Infinity'),
    last        float8 CHECK (last > '-Infinity' AND last < 'Infinity'),
    iv          float8 CHECK (iv > '-Infinity' AND iv < 'Infinity'),
    delta       float8 CHECK (delta > '-Infinity' AND delta < 'Infinity'),
    gamma       float8 CHECK (gamma > '-Infinity' AND gamma < 'Infinity'),
    theta       float8 CHECK (theta > '-Infinity' AND theta < 'Infinity'),
    vega        float8 CHECK (vega > '-Infinity' AND vega < 'Infinity'),
    oi          bigint CHECK (oi >= 0),
    volume      bigint CHECK (volume >= 0),
    spot        float8 CHECK (spot > '-Infinity' AND spot < 'Infinity'),
    PRIMARY KEY (provider, symbol, expiry, option_type, strike, ts)
);

CREATE TABLE fundamentals (
    provider text COLLATE "C" NOT NULL CHECK (provider <> ''),
    symbol   text COLLATE "C" NOT NULL CHECK (symbol <> ''),
    asof     timestamptz      NOT NULL,
    metric   text COLLATE "C" NOT NULL CHECK (metric <> ''),
    value    float8           NOT NULL CHECK (value > '-Infinity' AND value < 'Infinity'),
    currency text COLLATE "C" NOT NULL,
    period   text COLLATE "C" NOT NULL,
    PRIMARY KEY (provider, symbol, metric, period, asof)
);

CREATE TABLE news (
    provider        text COLLATE "C" NOT NULL CHECK (provider <> ''),
    id              text COLLATE "C" NOT NULL CHECK (id <> ''),
    published_at    timestamptz      NOT NULL,
    symbol          text COLLATE "C" NOT NULL CHECK (symbol <> ''),
    title           text COLLATE "C" NOT NULL,
    url             text COLLATE "C" NOT NULL,
    summary         text COLLATE "C" NOT NULL,
    sentiment_score float8 CHECK (sentiment_score BETWEEN -1 AND 1),
    PRIMARY KEY (provider, id, symbol)
);
CREATE INDEX news_published_at ON news (published_at);

CREATE TABLE job_runs (
    id                 text COLLATE "C" NOT NULL CHECK (id <> ''),
    job_name           text COLLATE "C" NOT NULL CHECK (job_name <> ''),
    dataset_name       text COLLATE "C" NOT NULL,
    provider           text COLLATE "C" NOT NULL,
    mode               text COLLATE "C" NOT NULL CHECK (mode IN ('live', 'backfill')),
    status             text COLLATE "C" NOT NULL
        CHECK (status IN ('running', 'success', 'failure', 'cancelled')),
    config_fingerprint text COLLATE "C" NOT NULL,
    pipeline_version   text COLLATE "C" NOT NULL,
    rows_written       bigint           NOT NULL CHECK (rows_written >= 0),
    rows_failed        bigint           NOT NULL CHECK (rows_failed >= 0),
    symbols            jsonb            NOT NULL,
    min_ts             timestamptz,
    max_ts             timestamptz,
    error_message      text COLLATE "C" NOT NULL,
    metadata           jsonb            NOT NULL,
    started_at         timestamptz      NOT NULL,
    completed_at       timestamptz,
    elapsed_ms         bigint CHECK (elapsed_ms >= 0),
    PRIMARY KEY (id)
) WITH (fillfactor = 50);
CREATE INDEX job_runs_started_at ON job_runs (started_at);

-- The runs of the last 24 hours.
CREATE VIEW job_runs_summary AS
SELECT job_name, provider, mode, count(*) AS runs,
    count(*) FILTER (WHERE status = 'running') AS running,
    count(*) FILTER (WHERE status = 'success') AS success,
    count(*) FILTER (WHERE status = 'failure') AS failure,
    count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
    sum(rows_written)::bigint AS rows_written, sum(rows_failed)::bigint AS rows_failed,
    avg(elapsed_ms)::float8 AS elapsed_ms_avg, max(started_at) AS last_started_at
FROM job_runs
WHERE started_at >= now() - INTERVAL '24 hours'
GROUP BY job_name, provider, mode;

-- Roll-ups for dashboards: bars_1m has one row a minute for every series, and so on; base_interval
-- tells of which bars. They are computed when they are read. Their sums are float64 sums of rounded
-- bars, so they are no substitute for bars of these lengths computed from the events, which are
-- exact. What has such a name already is left alone: on TimescaleDB they are continuous aggregates,
-- and these views come back when those go.
CREATE FUNCTION mdp_make_rollup_views() RETURNS void LANGUAGE plpgsql AS $function$
DECLARE
    rollup record;
BEGIN
    FOR rollup IN
        SELECT * FROM (VALUES ('bars_1m', 60), ('bars_5m', 300), ('bars_1h', 3600),
            ('bars_1d', 86400)) AS wanted (name, seconds)
    LOOP
        CONTINUE WHEN to_regclass(format('%I.%I', current_schema(), rollup.name)) IS NOT NULL;
        EXECUTE format($view$
            CREATE VIEW %I AS
            SELECT provider, symbol, interval AS base_interval, bucket AS ts,
                (array_agg(open ORDER BY b.ts))[1] AS open, max(high) AS high, min(low) AS low,
                (array_agg(close ORDER BY b.ts DESC))[1] AS close, sum(volume) AS volume,
                sum(vwap * volume) / nullif(sum(volume), 0) AS vwap,
                sum(trade_count) AS trade_count
            FROM bars_ohlcv AS b CROSS JOIN LATERAL (SELECT timestamptz 'epoch'
                + floor(extract(epoch FROM b.ts) / %s) * INTERVAL '%s seconds' AS bucket) AS g
            GROUP BY provider, symbol, interval, bucket $view$,
            rollup.name, rollup.seconds, rollup.seconds);
    END LOOP;
END $function$;
SELECT mdp_make_rollup_views();

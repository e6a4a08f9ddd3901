-- What is written and read beside bars. Times are UTC nanoseconds since 1970, days are ISO dates,
-- JSON is text. SQLite stores NaN as NULL, so that only infinities are left to be refused here.
CREATE TABLE signals (
    provider   TEXT    NOT NULL CHECK (provider <> ''),
    symbol     TEXT    NOT NULL CHECK (symbol <> ''),
    ts         INTEGER NOT NULL,
    name       TEXT    NOT NULL CHECK (name <> ''),
    value      REAL    NOT NULL CHECK (abs(value) < 9e999),
    score      REAL             CHECK (abs(score) < 9e999),
    state      TEXT    NOT NULL CHECK (state IN ('active', 'retracted')),
    metadata   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (provider, symbol, ts, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX signals_ts ON signals (ts);

CREATE TABLE options_snap (
    provider    TEXT    NOT NULL CHECK (provider <> ''),
    symbol      TEXT    NOT NULL CHECK (symbol <> ''),
    expiry      TEXT    NOT NULL CHECK (expiry IS date(expiry)),
    option_type TEXT    NOT NULL CHECK (option_type IN ('C', 'P')),
    strike      REAL    NOT NULL CHECK (abs(strike) < 9e999),
    ts          INTEGER NOT NULL,
    bid         REAL             CHECK (abs(bid) < 9e999),
    ask         REAL             CHECK (abs(ask) < 9e999),
    last        REAL             CHECK (abs(last) < 9e999),
    iv          REAL             CHECK (abs(iv) < 9e999),
    delta       REAL             CHECK (abs(delta) < 9e999),
    gamma       REAL             CHECK (abs(gamma) < 9e999),
    theta       REAL             CHECK (abs(theta) < 9e999),
    vega        REAL             CHECK (abs(vega) < 9e999),
    oi          INTEGER          CHECK (oi >= 0),
    volume      INTEGER          CHECK (volume >= 0),
    spot        REAL             CHECK (abs(spot) < 9e999),
    PRIMARY KEY (provider, symbol, expiry, option_type, strike, ts)
) STRICT, WITHOUT ROWID;

CREATE TABLE fundamentals (
    provider TEXT    NOT NULL CHECK (provider <> ''),
    symbol   TEXT    NOT NULL CHECK (symbol <> ''),
    asof     INTEGER NOT NULL,
    metric   TEXT    NOT NULL CHECK (metric <> ''),
    value    REAL    NOT NULL CHECK (abs(value) < 9e999),
    currency TEXT    NOT NULL,
    period   TEXT    NOT NULL,
    PRIMARY KEY (provider, symbol, metric, period, asof)
) STRICT, WITHOUT ROWID;

-- These two have long rows, which a tree that is searched by the key should not carry.
CREATE TABLE news (
    provider        TEXT    NOT NULL CHECK (provider <> ''),
    id              TEXT    NOT NULL CHECK (id <> ''),
    published_at    INTEGER NOT NULL,
    symbol          TEXT    NOT NULL CHECK (symbol <> ''),
    title           TEXT    NOT NULL,
    url             TEXT    NOT NULL,
    summary         TEXT    NOT NULL,
    sentiment_score REAL             CHECK (sentiment_score BETWEEN -1 AND 1),
    PRIMARY KEY (provider, id, symbol)
) STRICT;
CREATE INDEX news_published_at ON news (published_at);

CREATE TABLE job_runs (
    id                 TEXT    NOT NULL CHECK (id <> ''),
    job_name           TEXT    NOT NULL CHECK (job_name <> ''),
    dataset_name       TEXT    NOT NULL,
    provider           TEXT    NOT NULL,
    mode               TEXT    NOT NULL CHECK (mode IN ('live', 'backfill')),
    status             TEXT    NOT NULL
        CHECK (status IN ('running', 'success', 'failure', 'cancelled')),
    config_fingerprint TEXT    NOT NULL,
    pipeline_version   TEXT    NOT NULL,
    rows_written       INTEGER NOT NULL CHECK (rows_written >= 0),
    rows_failed        INTEGER NOT NULL CHECK (rows_failed >= 0),
    symbols            TEXT    NOT NULL,
    min_ts             INTEGER,
    max_ts             INTEGER,
    error_message      TEXT    NOT NULL,
    metadata           TEXT    NOT NULL,
    started_at         INTEGER NOT NULL,
    completed_at       INTEGER,
    elapsed_ms         INTEGER          CHECK (elapsed_ms >= 0),
    PRIMARY KEY (id)
) STRICT;
CREATE INDEX job_runs_started_at ON job_runs (started_at);

-- The runs of the last 24 hours.
CREATE VIEW job_runs_summary AS
SELECT job_name, provider, mode, count(*) AS runs,
    count(*) FILTER (WHERE status = 'running') AS running,
    count(*) FILTER (WHERE status = 'success') AS success,
    count(*) FILTER (WHERE status = 'failure') AS failure,
    count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
    sum(rows_written) AS rows_written, sum(rows_failed) AS rows_failed,
    avg(elapsed_ms) AS elapsed_ms_avg, max(started_at) AS last_started_at
FROM job_runs
WHERE started_at >= (strftime('%s', 'now') - 86400) * 1000000000
GROUP BY job_name, provider, mode;

-- Roll-ups for dashboards: bars_1m has one row a minute for every series, and so on, and
-- base_interval tells of which bars. They are computed on reading. Their sums are float64 sums of
-- rounded bars, so they are no substitute for bars of these lengths computed from the events.
CREATE VIEW bars_1m AS
SELECT g.provider, g.symbol, g.base_interval, g.ts, f.open, g.high, g.low, l.close, g.volume,
    g.vwap, g.trade_count
FROM (
    SELECT provider, symbol, interval AS base_interval,
        ts - ((ts % 60000000000) + 60000000000) % 60000000000 AS ts,
        min(ts) AS first_ts, max(ts) AS last_ts, max(high) AS high, min(low) AS low,
        sum(volume) AS volume, sum(vwap * volume) / nullif(sum(volume), 0) AS vwap,
        sum(trade_count) AS trade_count
    FROM bars_ohlcv GROUP BY 1, 2, 3, 4
) g
JOIN bars_ohlcv f ON f.provider = g.provider AND f.symbol = g.symbol
    AND f.interval = g.base_interval AND f.ts = g.first_ts
JOIN bars_ohlcv l ON l.provider = g.provider AND l.symbol = g.symbol
    AND l.interval = g.base_interval AND l.ts = g.last_ts;

CREATE VIEW bars_5m AS
SELECT g.provider, g.symbol, g.base_interval, g.ts, f.open, g.high, g.low, l.close, g.volume,
    g.vwap, g.trade_count
FROM (
    SELECT provider, symbol, interval AS base_interval,
        ts - ((ts % 300000000000) + 300000000000) % 300000000000 AS ts,
        min(ts) AS first_ts, max(ts) AS last_ts, max(high) AS high, min(low) AS low,
        sum(volume) AS volume, sum(vwap * volume) / nullif(sum(volume), 0) AS vwap,
        sum(trade_count) AS trade_count
    FROM bars_ohlcv GROUP BY 1, 2, 3, 4
) g
JOIN bars_ohlcv f ON f.provider = g.provider AND f.symbol = g.symbol
    AND f.interval = g.base_interval AND f.ts = g.first_ts
JOIN bars_ohlcv l ON l.provider = g.provider AND l.symbol = g.symbol
    AND l.interval = g.base_interval AND l.ts = g.last_ts;

CREATE VIEW bars_1h AS
SELECT g.provider, g.symbol, g.base_interval, g.ts, f.open, g.high, g.low, l.close, g.volume,
    g.vwap, g.trade_count
FROM (
    SELECT provider, symbol, interval AS base_interval,
        ts - ((ts % 3600000000000) + 3600000000000) % 3600000000000 AS ts,
        min(ts) AS first_ts, max(ts) AS last_ts, max(high) AS high, min(low) AS low,
        sum(volume) AS volume, sum(vwap * volume) / nullif(sum(volume), 0) AS vwap,
        sum(trade_count) AS trade_count
    FROM bars_ohlcv GROUP BY 1, 2, 3, 4
) g
JOIN bars_ohlcv f ON f.provider = g.provider AND f.symbol = g.symbol
    AND f.interval = g.base_interval AND f.ts = g.first_ts
JOIN bars_ohlcv l ON l.provider = g.provider AND l.symbol = g.symbol
    AND l.interval = g.base_interval AND l.ts = g.last_ts;

CREATE VIEW bars_1d AS
SELECT g.provider, g.symbol, g.base_interval, g.ts, f.open, g.high, g.low, l.close, g.volume,
    g.vwap, g.trade_count
FROM (
    SELECT provider, symbol, interval AS base_interval,
        ts - ((ts % 86400000000000) + 86400000000000) % 86400000000000 AS ts,
        min(ts) AS first_ts, max(ts) AS last_ts, max(high) AS high, min(low) AS low,
        sum(volume) AS volume, sum(vwap * volume) / nullif(sum(volume), 0) AS vwap,
        sum(trade_count) AS trade_count
    FROM bars_ohlcv GROUP BY 1, 2, 3, 4
) g
JOIN bars_ohlcv f ON f.provider = g.provider AND f.symbol = g.symbol
    AND f.interval = g.base_interval AND f.ts = g.first_ts
JOIN bars_ohlcv l ON l.provider = g.provider AND l.symbol = g.symbol
    AND l.interval = g.base_interval AND l.ts = g.last_ts;

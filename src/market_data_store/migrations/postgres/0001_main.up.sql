-- Texts of keys compare by their bytes (COLLATE "C"): quicker, and in the same order everywhere.
-- Starts of windows are whole milliseconds, so timestamptz, which counts microseconds, holds them.
CREATE TABLE bars_ohlcv (
    provider    text COLLATE "C" NOT NULL CHECK (provider <> ''),
    symbol      text COLLATE "C" NOT NULL CHECK (symbol <> ''),
    interval    text COLLATE "C" NOT NULL,
    ts          timestamptz      NOT NULL,
    open        float8           NOT NULL CHECK (open > '-Infinity' AND open < 'Infinity'),
    high        float8           NOT NULL CHECK (high > '-Infinity' AND high < 'Infinity'),
    low         float8           NOT NULL CHECK (low > '-Infinity' AND low < 'Infinity'),
    close       float8           NOT NULL CHECK (close > '-Infinity' AND close < 'Infinity'),
    volume      float8           NOT NULL CHECK (volume > '-Infinity' AND volume < 'Infinity'),
    vwap        float8 CHECK (vwap > '-Infinity' AND vwap < 'Infinity'),
    trade_count bigint,
    state       text COLLATE "C" NOT NULL CHECK (state IN ('final', 'revised', 'gap')),
    created_at  timestamptz      NOT NULL,
    updated_at  timestamptz      NOT NULL,
    PRIMARY KEY (provider, symbol, interval, ts)
);

CREATE TABLE bars_ohlcv_history (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider    text COLLATE "C" NOT NULL,
    symbol      text COLLATE "C" NOT NULL,
    interval    text COLLATE "C" NOT NULL,
    ts          timestamptz      NOT NULL,
    open        float8           NOT NULL,
    high        float8           NOT NULL,
    low         float8           NOT NULL,
    close       float8           NOT NULL,
    volume      float8           NOT NULL,
    vwap        float8,
    trade_count bigint,
    state       text COLLATE "C" NOT NULL,
    known_from  timestamptz      NOT NULL,
    known_until timestamptz      NOT NULL
);
CREATE INDEX bars_ohlcv_history_key ON bars_ohlcv_history (provider, symbol, interval, ts);

-- One row for each partition of each topic: who owns it, and where its results stand.
-- Heartbeats are UTC nanoseconds of the writer's clock.
CREATE TABLE partitions (
    consumer_group text COLLATE "C" NOT NULL,
    topic          text COLLATE "C" NOT NULL,
    partition      integer          NOT NULL,
    token          bigint           NOT NULL,
    owner          text             NOT NULL,
    heartbeat      bigint           NOT NULL,
    sequence       bigint           NOT NULL,
    checkpoint     bytea,
    PRIMARY KEY (consumer_group, topic, partition)
) WITH (fillfactor = 50);

CREATE TABLE members (
    consumer_group text COLLATE "C" NOT NULL,
    topic          text COLLATE "C" NOT NULL,
    member         text COLLATE "C" NOT NULL,
    heartbeat      bigint           NOT NULL,
    PRIMARY KEY (consumer_group, topic, member)
) WITH (fillfactor = 50);

-- What a transaction has decided to publish, until it has been published.
CREATE TABLE outbox (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer_group text COLLATE "C" NOT NULL,
    topic          text COLLATE "C" NOT NULL,
    partition      integer          NOT NULL,
    destination    text             NOT NULL,
    key            text             NOT NULL,
    payload        bytea            NOT NULL,
    count          bigint           NOT NULL,
    to_partition   integer          NOT NULL,
    provider       text             NOT NULL,
    min_ts         bigint           NOT NULL,
    max_ts         bigint           NOT NULL
);
CREATE INDEX outbox_source ON outbox (consumer_group, topic, partition);

-- Versions of published bars.
CREATE SEQUENCE bars_version;

CREATE TABLE sequences (name text COLLATE "C" PRIMARY KEY, value bigint NOT NULL);

-- Spans that do not begin or end at a whole microsecond are rounded outward.
CREATE TABLE gaps (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider   text COLLATE "C" NOT NULL,
    symbol     text COLLATE "C" NOT NULL,
    from_ts    timestamptz      NOT NULL,
    to_ts      timestamptz      NOT NULL,
    cause      text COLLATE "C" NOT NULL,
    state      text COLLATE "C" NOT NULL
        CHECK (state IN ('open', 'filled', 'verified', 'unfillable')),
    detail     text             NOT NULL,
    created_at timestamptz      NOT NULL,
    UNIQUE (provider, symbol, from_ts, to_ts, cause)
);

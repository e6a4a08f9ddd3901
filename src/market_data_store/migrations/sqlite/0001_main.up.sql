-- Times are UTC nanoseconds since 1970.
CREATE TABLE bars_ohlcv (
    provider    TEXT    NOT NULL CHECK (provider <> ''),
    symbol      TEXT    NOT NULL CHECK (symbol <> ''),
    interval    TEXT    NOT NULL,
    ts          INTEGER NOT NULL,
    open        REAL    NOT NULL,
    high        REAL    NOT NULL,
    low         REAL    NOT NULL,
    close       REAL    NOT NULL,
    volume      REAL    NOT NULL CHECK (volume < 9e999),
    vwap        REAL CHECK (vwap < 9e999),
    trade_count INTEGER,
    state       TEXT    NOT NULL CHECK (state IN ('final', 'revised', 'gap')),
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (provider, symbol, interval, ts)
) WITHOUT ROWID;

CREATE TABLE bars_ohlcv_history (
    id          INTEGER PRIMARY KEY,
    provider    TEXT    NOT NULL,
    symbol      TEXT    NOT NULL,
    interval    TEXT    NOT NULL,
    ts          INTEGER NOT NULL,
    open        REAL    NOT NULL,
    high        REAL    NOT NULL,
    low         REAL    NOT NULL,
    close       REAL    NOT NULL,
    volume      REAL    NOT NULL,
    vwap        REAL,
    trade_count INTEGER,
    state       TEXT    NOT NULL,
    known_from  INTEGER NOT NULL,
    known_until INTEGER NOT NULL
);
CREATE INDEX bars_ohlcv_history_key ON bars_ohlcv_history (provider, symbol, interval, ts);

-- One row for each partition of each topic: who owns it, and where its results stand.
CREATE TABLE partitions (
    consumer_group TEXT    NOT NULL,
    topic          TEXT    NOT NULL,
    partition      INTEGER NOT NULL,
    token          INTEGER NOT NULL,
    owner          TEXT    NOT NULL,
    heartbeat      INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    checkpoint     BLOB,
    PRIMARY KEY (consumer_group, topic, partition)
) WITHOUT ROWID;

CREATE TABLE members (
    consumer_group TEXT    NOT NULL,
    topic          TEXT    NOT NULL,
    member         TEXT    NOT NULL,
    heartbeat      INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, topic, member)
) WITHOUT ROWID;

-- What a transaction has decided to publish, until it has been published.
CREATE TABLE outbox (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer_group TEXT    NOT NULL,
    topic          TEXT    NOT NULL,
    partition      INTEGER NOT NULL,
    destination    TEXT    NOT NULL,
    key            TEXT    NOT NULL,
    payload        BLOB    NOT NULL,
    count          INTEGER NOT NULL,
    to_partition   INTEGER NOT NULL,
    provider       TEXT    NOT NULL,
    min_ts         INTEGER NOT NULL,
    max_ts         INTEGER NOT NULL
);
CREATE INDEX outbox_source ON outbox (consumer_group, topic, partition);

CREATE TABLE sequences (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE gaps (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    provider   TEXT    NOT NULL,
    symbol     TEXT    NOT NULL,
    from_ts    INTEGER NOT NULL,
    to_ts      INTEGER NOT NULL,
    cause      TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('open', 'filled', 'verified', 'unfillable')),
    detail     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (provider, symbol, from_ts, to_ts, cause)
);

DROP TABLE gaps;
DROP TABLE sequences;
DROP SEQUENCE bars_version;
DROP TABLE outbox;
DROP TABLE members;
DROP TABLE partitions;
DROP TABLE bars_ohlcv_history;
DROP TABLE bars_ohlcv;

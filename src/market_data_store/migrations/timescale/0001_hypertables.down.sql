CREATE TABLE bars_ohlcv_plain (LIKE bars_ohlcv INCLUDING ALL);
INSERT INTO bars_ohlcv_plain SELECT * FROM bars_ohlcv;
DROP TABLE bars_ohlcv;
ALTER TABLE bars_ohlcv_plain RENAME TO bars_ohlcv;
ALTER INDEX bars_ohlcv_plain_pkey RENAME TO bars_ohlcv_pkey;

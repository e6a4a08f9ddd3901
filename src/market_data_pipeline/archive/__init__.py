"""The archive: every event of the log as Parquet files, written once, read back in order of time.

::

    <root>/archive.json                                            which archive this is
    <root>/date=2025-10-24/provider=ibkr/symbol=SPY/<file>.parquet events, by UTC date
    <root>/rejected/date=2025-10-24/<file>.parquet                 what is no event, as it came
    <root>/letters/date=2025-10-24/<file>.parquet                  what was set aside later, and why
    <root>/.staging/                                               files that no checkpoint covers

A file's name tells the topic, the partition, and the offset at which its span of the log begins.
"""

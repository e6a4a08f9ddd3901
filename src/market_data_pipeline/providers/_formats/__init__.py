"""How recordings are read: one file per format, and the steps that all of them share.

``inputs`` opens files and cuts them into lines, ``sniff`` names a file's format, ``ndjson``,
``binance``, ``csv_file``, ``parquet_file`` and ``dbn`` turn it into ``rows``, ``order`` and
``presort`` put those into time order, and ``merge`` joins several files into batches.
"""

"""Sinks: where a write coordinator's batches go. One for each table, and one for groups."""

from market_data_store.sinks.bars import BarsSink
from market_data_store.sinks.fundamentals import FundamentalsSink
from market_data_store.sinks.news import NewsSink
from market_data_store.sinks.options import OptionsSink
from market_data_store.sinks.signals import SignalsSink

__all__ = ["BarsSink", "FundamentalsSink", "NewsSink", "OptionsSink", "SignalsSink"]

"""The client library: what applications import."""

from mds_client import models
from mds_client.client import AMDS, MDS
from mds_client.models import (
    Bar,
    FundamentalPoint,
    InvalidRecord,
    NewsItem,
    OptionSnap,
    SignalRow,
)

__all__ = [
    "AMDS",
    "MDS",
    "Bar",
    "FundamentalPoint",
    "InvalidRecord",
    "NewsItem",
    "OptionSnap",
    "SignalRow",
    "models",
]

"""Which partition a symbol belongs to: murmur2, as Kafka's Java client computes it."""

from __future__ import annotations

from functools import lru_cache

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """32-bit murmur2 hash with Kafka's seed (``org.apache.kafka.common.utils.Utils.murmur2``)."""
    length = len(data)
    h = 0x9747B28C ^ length
    tail = length & ~3
    for i in range(0, tail, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        k ^= k >> 24
        h = (h * _M & _MASK) ^ (k * _M & _MASK)
    rest = data[tail:]
    if rest:
        h ^= int.from_bytes(rest, "little")
        h = h * _M & _MASK
    h ^= h >> 13
    h = h * _M & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=200_000)
def partition_of(symbol: str, partitions: int) -> int:
    """Partition of `symbol` among `partitions`, 0-based."""
    return (murmur2(symbol.encode()) & 0x7FFFFFFF) % partitions

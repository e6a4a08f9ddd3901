"""Which rules evaluate which bars, where rules have changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from tests.property._signals_world import INTERVAL_NS, OTHER_RULES, RULES, START_NS, evaluator

from market_data_core.bars import VALUE_COLUMNS
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.features.selection import Selection
from market_data_pipeline.signals.checkpoint import Edition, Series, SignalsCheckpoint
from market_data_pipeline.signals.editions import Editions, EditionsOf

FIRST, SECOND = evaluator(RULES), evaluator(OTHER_RULES)
QUICK, SLOW, NEW = ("quick", "2s"), ("slow", "2s"), ("new", "2s")


def slot(number: int) -> int:
    return START_NS + number * INTERVAL_NS


def switched(reached: dict[tuple[str, str], int]) -> Sequence[Edition]:
    """The editions of a partition in which so much was evaluated by the first rules."""
    known = Editions(FIRST, evaluator).joined(SignalsCheckpoint(log_id="", position=0), {})
    return Editions(SECOND, evaluator).joined(known, reached).editions


def bars(*symbols: str) -> Selection:
    """Six bars of each."""
    numbers = np.tile(np.arange(6), len(symbols))
    frame = pl.DataFrame(
        {
            "symbol": [symbol for symbol in symbols for _ in range(6)],
            "ts": pl.Series(START_NS + numbers * INTERVAL_NS).cast(pl.Datetime("ns", "UTC")),
            **dict.fromkeys(VALUE_COLUMNS, np.ones(len(numbers))),
        }
    )
    return Panel(INTERVAL_NS, frame, 0).select(np.arange(len(numbers), dtype=np.intp))


def whose(key: tuple[str, str], of: dict[str, Sequence[Edition]], until: int = 6) -> dict[str, str]:
    """Symbol -> which of the rules evaluate its bars; "-" for none."""
    found = {symbol: ["-"] * 6 for symbol in of}
    editions = EditionsOf(Editions(SECOND, evaluator), key, of.__getitem__, lambda _: slot(until))
    for made, part in editions.parts(bars(*of)):
        for code, start in zip(part.codes.tolist(), part.starts.tolist(), strict=True):
            cell = found[part.symbols[code]]
            assert cell[(start - START_NS) // INTERVAL_NS] == "-"
            cell[(start - START_NS) // INTERVAL_NS] = "1" if made.version == FIRST.version else "2"
    return {symbol: "".join(cells) for symbol, cells in found.items()}


def test_each_feed_has_a_border_of_its_own() -> None:
    editions = switched({QUICK: slot(4), SLOW: slot(1)})
    assert whose(QUICK, {"A": editions}) == {"A": "111112"}
    assert whose(SLOW, {"A": editions}) == {"A": "112222"}
    assert whose(NEW, {"A": editions}) == {"A": "222222"}


def test_each_partition_has_borders_of_its_own() -> None:
    of = {"A": switched({QUICK: slot(3)}), "B": switched({QUICK: slot(0)}), "C": switched({})}
    assert whose(QUICK, of) == {"A": "111122", "B": "122222", "C": "222222"}
    assert whose(QUICK, of, until=1) == {"A": "11----", "B": "12----", "C": "22----"}


def test_rules_that_evaluated_nothing_are_as_if_they_had_not_been() -> None:
    editions, reached = switched({QUICK: slot(2)}), {QUICK: slot(2)}
    assert [edition.version for edition in editions] == [FIRST.version, SECOND.version]
    assert Editions(FIRST, evaluator).continued(editions, reached) == [editions[0]]
    reached[SLOW] = slot(0)
    back = Editions(FIRST, evaluator).continued(editions, reached)
    assert back == [*editions, Edition(FIRST.version, RULES, (*series(reached),))]


def series(reached: dict[tuple[str, str], int]) -> list[Series]:
    return [Series(*key, start) for key, start in sorted(reached.items())]

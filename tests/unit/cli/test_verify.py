from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from market_data_core.deadletters import DeadLetter, encode_letters
from market_data_core.events import EventBatch, make_batch, parse_ts
from market_data_pipeline import verification
from market_data_pipeline.windows.checkpoint import decode_checkpoint

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z
MS = 10**6


def ticks(
    seed: int = 1, n: int = 600, provider: str = "feed", late: bool = True
) -> list[EventBatch]:
    """Trades of four symbols over two minutes with disorder, copies, contradictions, late ones."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        ts = START + i * 200 * MS - rng.choice((0, 0, 0, 300, 5_000)) * MS
        price, size = round(rng.uniform(10, 20), 3), round(rng.expovariate(1), 4)
        rows.append((rng.choice("ABCD"), ts, i, price, size))
        if rng.random() < 0.05:
            rows.append(rng.choice(rows))
        if rng.random() < 0.05:
            symbol, ts, seq, price, size = rows[-1]
            rows.append((symbol, ts, seq, price + 0.5, size))
        if late and i > 200 and rng.random() < 0.03:
            rows += [rng.choice(rows[:50])] * rng.choice((1, 2))
        if late and i > 200 and rng.random() < 0.02:
            rows.append((rng.choice("ABCD"), START + rng.randrange(4_000) * MS, -i, 15.0, 1.0))
    batches = []
    for at in range(0, len(rows), 37):
        columns = zip(*rows[at : at + 37], strict=True)
        batches.append(make_batch(provider, *columns))
    return batches


def outbox(home: Home, payload: bytes, provider: str, min_ts: int, max_ts: int) -> None:
    """Leave dead letters in the outbox, as a worker does that is killed after its commit."""
    home.store(
        """INSERT INTO outbox (consumer_group, topic, partition, destination, key, payload, count,
            to_partition, provider, min_ts, max_ts)
            VALUES ('mdp-consumers', 'mdp.events.a', 0, 'mdp.dlq', hex(randomblob(8)), ?, 1, 0,
            ?, ?, ?)""",
        (payload, provider, min_ts, max_ts),
    )


def line(output: str, name: str) -> str:
    return next(t.strip() for t in output.splitlines() if t.strip().startswith(name))


def count(output: str) -> int:
    return int(line(output, "windows").split()[1].replace(",", ""))


@pytest.mark.parametrize("codec", ["columnar", "json"])
def test_untouched_bars_do_not_differ(home: Home, codec: str) -> None:
    home.lane(ticks(), bus__codec=codec)
    assert home.store("SELECT count(*) FROM bars_ohlcv")[0][0] >= 400
    letters = home.ok("dlq", "list")
    assert "late" in letters
    assert "id_conflict" in letters

    output = home.ok("verify")

    assert output.endswith("no difference\n")
    assert count(output) == home.store("SELECT count(*) FROM bars_ohlcv")[0][0]
    assert "not verifiable" not in output


def test_one_bit_is_a_difference(home: Home) -> None:
    home.lane(ticks())
    (vwap, symbol, ts), *_ = home.store(
        "SELECT vwap, symbol, ts FROM bars_ohlcv WHERE interval = '3s' ORDER BY ts LIMIT 1"
    )
    wrong = float(np.nextafter(vwap, 99))
    home.store(
        "UPDATE bars_ohlcv SET vwap = ? WHERE interval = '3s' AND symbol = ? AND ts = ?",
        (wrong, symbol, ts),
    )

    result = home.run("verify")

    assert result.exit_code == 1
    row = line(result.stdout, "differs").split()
    assert row[:3] == ["differs", "feed", symbol]
    assert row[-3:] == ["vwap", repr(wrong), repr(vwap)]


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume", "trade_count"])
def test_every_column_is_compared(home: Home, column: str) -> None:
    home.lane(ticks(n=60))
    home.store(f"UPDATE bars_ohlcv SET {column} = {column} + 1 WHERE interval = '1m'")

    result = home.run("verify")

    assert result.exit_code == 1
    assert f" {column} " in result.stdout


def test_a_missing_and_an_invented_bar_are_differences(home: Home) -> None:
    home.lane(ticks())
    ((gone,),) = home.store("SELECT min(ts) FROM bars_ohlcv WHERE symbol = 'A' AND interval = '2s'")
    key = "symbol = 'A' AND interval = '2s' AND ts = ?"
    home.store(f"DELETE FROM bars_ohlcv WHERE {key}", (gone,))
    home.store(
        """INSERT INTO bars_ohlcv SELECT provider, 'NEW', interval, ts, open, high, low, close,
            volume, vwap, trade_count, state, 0, 0 FROM bars_ohlcv WHERE interval = '1m' LIMIT 1"""
    )

    result = home.run("verify")

    assert result.exit_code == 1
    assert "2 differences" in result.stdout
    assert line(result.stdout, "missing in store").split()[4:6] == ["A", "2s"]
    assert line(result.stdout, "no events").split()[3:5] == ["NEW", "1m"]


def test_slices_do_not_change_the_result(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.lane(ticks())
    whole = count(home.ok("verify"))
    monkeypatch.setattr(verification, "SLICE_EVENTS", 7)

    output = home.ok("verify")

    assert output.endswith("no difference\n")
    assert count(output) == whole


def test_ranges_symbols_and_providers_narrow_it(home: Home) -> None:
    home.lane(ticks())
    home.lane(ticks(provider="other", seed=2), "mdp.events.b")

    def bars(where: str, *values: int) -> int:
        found = home.store(f"SELECT count(*) FROM bars_ohlcv WHERE {where}", values)
        return int(found[0][0])

    one = home.ok("verify", "--provider", "feed", "--symbols", "b")
    assert count(one) == bars("provider = 'feed' AND symbol = 'B'")
    # windows that reach out of the range are not compared: it holds half of them
    part = home.ok("verify", "--from", "2025-10-24T14:00:31Z", "--to", "2025-10-24T14:02:00Z")
    # 1 s divides the configured windows, so the engine stores bars of it too
    seconds = (
        "CASE interval WHEN '1m' THEN 60 WHEN '3s' THEN 3 WHEN '2s' THEN 2 WHEN '1s' THEN 1 END"
    )
    span = (START + 31 * 10**9, START + 120 * 10**9)
    assert count(part) == bars(f"ts >= ? AND ts + {seconds} * 1000000000 <= ?", *span)
    for output in (one, part):
        assert output.endswith("no difference\n")


def test_lanes_that_overlap_are_verified_as_one(home: Home) -> None:
    batches = ticks(late=False)
    home.lane(batches[:-4:2], "mdp.events.a")
    home.lane([*batches[1::2], *batches[2:6:2]], "mdp.events.b")

    output = home.ok("verify")

    assert output.endswith("no difference\n")
    assert count(output) == home.store("SELECT count(*) FROM bars_ohlcv")[0][0]


def test_lanes_may_compute_different_windows(home: Home) -> None:
    home.lane(ticks(n=100), "mdp.events.a", micro_batch__windows=("2s",))
    later = make_batch("feed", ["A"], [START + 3_600 * 10**9], [1], [10.0], [1.0])
    home.lane([later], "mdp.events.b", micro_batch__windows=("5s",))

    assert home.ok("verify").endswith("no difference\n")


def test_an_interval_owes_bars_only_since_it_is_in_use(home: Home) -> None:
    batches = ticks(late=False)
    half, two = batches[: len(batches) // 2], ("2s", "4s")
    home.lane(half, ended=False, bus__partitions=1, micro_batch__windows=("2s",))
    home.lane(batches, bus__partitions=1, micro_batch__windows=two)
    ((first,),) = home.store("SELECT min(ts) FROM bars_ohlcv WHERE interval = '4s'")
    assert first > START + 30 * 10**9

    assert home.ok("verify").endswith("no difference\n")
    home.store("DELETE FROM bars_ohlcv WHERE interval = '4s' AND ts = ?", (first + 8 * 10**9,))
    assert "missing in store" in home.run("verify").stdout


def test_letters_that_wait_to_be_published_count(home: Home) -> None:
    """A worker killed between commit and publication leaves its letters in the outbox."""
    home.lane(ticks())
    rows = home.topic("mdp.dlq", "SELECT payload, provider, min_ts, max_ts FROM log")
    assert rows
    home.topic("mdp.dlq", "DELETE FROM log")
    assert home.run("verify").exit_code == 1

    for row in rows:
        outbox(home, *row)

    assert home.ok("verify").endswith("no difference\n")


def test_a_letter_published_but_still_in_the_outbox_counts_once(home: Home) -> None:
    home.lane(ticks())
    row = home.topic("mdp.dlq", "SELECT payload, provider, min_ts, max_ts FROM log LIMIT 1")[0]
    # with every letter twice, events that did count would be taken for dead ones
    outbox(home, *row)

    assert home.ok("verify").endswith("no difference\n")


@pytest.mark.parametrize("stranger", ["provider", "log"])
def test_letters_of_another_provider_or_log_do_not_count(home: Home, stranger: str) -> None:
    """A lane that was begun anew has a log of its own under the same name."""
    home.lane(ticks())
    ((log_id,),) = home.topic("mdp.events.a", "SELECT value FROM meta WHERE name = 'log_id'")
    provider = "other" if stranger == "provider" else "feed"
    events = [event for batch in ticks() for event in batch.events()][:40]
    letters = [
        DeadLetter(
            reason="late",
            detail="",
            topic="mdp.events.a",
            partition=partition,
            offset=0,
            original=msgspec.json.encode(event),
            log_id=log_id if stranger == "provider" else "before",
            provider=provider,
            symbol=event.symbol,
            src_ts=parse_ts(event.src_ts),
        )
        for event in events
        for partition in range(3)
    ]
    outbox(home, encode_letters(letters), provider, START - 10**10, START + 10**12)

    assert home.ok("verify").endswith("no difference\n")


def test_windows_of_an_unfinished_lane_are_open(home: Home) -> None:
    batches = ticks(late=False)
    home.lane(batches, ended=False, bus__partitions=1)
    ((blob,),) = home.store("SELECT checkpoint FROM partitions")
    (state,) = decode_checkpoint(blob).streams
    assert START + 60 * 10**9 < state.closed < START + 120 * 10**9
    assert (state.closed - START) % (60 * 10**9)

    output = home.ok("verify")

    assert output.endswith("no difference\n")
    events = sum(int((batch.src_ts < state.closed).sum()) for batch in batches)
    assert line(output, "events").split()[1] == str(events)
    assert int(line(output, "open").split()[1]) >= 4


def test_what_one_lane_finished_and_another_has_not_is_open(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first lane's minute is stored, the second one's half of it is not."""
    later = ticks(seed=2, n=150, late=False)
    first = [batch.take(batch.src_ts < START + 20 * 10**9) for batch in ticks(late=False)]
    home.lane([batch for batch in first if len(batch)], "mdp.events.a", bus__partitions=1)
    moved = [
        make_batch(
            "feed",
            [batch.symbols[code] for code in batch.codes.tolist()],
            batch.src_ts + 25 * 10**9,
            batch.seq + 10_000,
            batch.close.to_floats(),
            batch.volume.to_floats(),
        )
        for batch in later
    ]
    home.lane(moved, "mdp.events.b", ended=False, bus__partitions=1)
    monkeypatch.setattr(verification, "SLICE_EVENTS", 7)

    output = home.ok("verify")

    assert output.endswith("no difference\n")
    assert home.store("SELECT count(*) FROM bars_ohlcv WHERE interval = '1m'")[0][0] >= 4
    assert int(line(output, "open").split()[1]) >= 4


def test_events_that_were_not_counted_yet_are_left_out(home: Home) -> None:
    """What was appended behind the last checkpoint is in no bar yet."""
    home.lane(ticks())
    payload = home.topic("mdp.events.a", "SELECT max(id) FROM log WHERE count > 0")
    home.topic(
        "mdp.events.a",
        f"""INSERT INTO log SELECT (SELECT max(id) FROM log WHERE id >> 44 = {payload[0][0] >> 44})
            + 1, append_ts, count, received, checksum, provider, min_ts, max_ts, payload
            FROM log WHERE id = {payload[0][0]}""",
    )
    before = line(home.ok("verify"), "events")

    assert int(before.split()[1].replace(",", "")) == sum(map(len, ticks()))


def test_trimmed_and_dropped_logs_are_said_to_be_unverifiable(home: Home) -> None:
    home.lane(ticks())
    home.topic("mdp.events.a", "DELETE FROM log WHERE id IN (SELECT min(id) FROM log)")
    output = home.ok("verify")
    assert "mdp.events.a no longer holds its oldest events" in line(output, "not verifiable")
    assert output.endswith("no difference\n")

    for suffix in ("", "-wal", "-shm"):
        (home.path / "bus" / f"mdp.events.a.db{suffix}").unlink(missing_ok=True)
    output = home.ok("verify")
    assert "the log of mdp.events.a is gone" in line(output, "not verifiable")
    assert output.endswith("nothing to compare\n")


def test_a_trimmed_log_does_not_excuse_bars_of_fewer_events(home: Home) -> None:
    home.lane(ticks(), bus__partitions=1)
    home.topic("mdp.events.a", "DELETE FROM log WHERE id IN (SELECT min(id) FROM log)")
    home.store("UPDATE bars_ohlcv SET trade_count = 1, volume = 0 WHERE interval = '1m'")

    assert home.run("verify").exit_code == 1


def test_vendor_bars_are_compared_as_they_came(home: Home) -> None:
    ts = [START, START + 60 * 10**9, START]
    ohl = ([1.0, 2.0, 1.5], [9.0, 9.5, 9.0], [0.5, 1.5, 0.5])
    bars = make_batch(
        "vendor", ["X"] * 3, ts, [0, 0, 1], [5.0, 6.0, 5.5], [10.0, 20.0, 11.0],
        ohl=ohl, kind="bar", interval="1m",
    )  # fmt: skip
    home.lane([bars])
    assert len(home.store("SELECT * FROM bars_ohlcv WHERE provider = 'vendor:official'")) == 2

    assert home.ok("verify").endswith("no difference\n")
    home.store("UPDATE bars_ohlcv SET close = 5.0 WHERE close = 5.5")
    assert home.run("verify").exit_code == 1


def test_a_bar_that_the_database_refused_is_not_missing(home: Home) -> None:
    """Sizes so great that their sum is infinite make a bar that can never be stored."""
    huge = make_batch("feed", ["A"] * 2, [START, START + 1], [1, 2], [1.0, 1.0], [1.7e308] * 2)
    home.lane([huge, *ticks(n=50)], micro_batch__windows=("2s",))
    assert "unwritable" in home.ok("dlq", "list")

    output = home.ok("verify")

    assert "database refused it" in output
    assert output.endswith("no difference\n")


def test_incomplete_bars_are_no_differences(home: Home) -> None:
    home.lane(ticks())
    home.store("UPDATE bars_ohlcv SET volume = 1, state = 'gap' WHERE interval = '1m'")

    output = home.ok("verify")

    assert "the bar is marked as incomplete" in output


def test_nothing_is_created_where_nothing_is(home: Home) -> None:
    assert "no bars yet" in str(home.error("verify"))
    assert not home.path.exists()

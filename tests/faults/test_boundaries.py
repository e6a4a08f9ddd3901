"""kill -9 at the write boundaries of one short recording, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.faults import checks
from tests.faults.doomed import boundaries
from tests.faults.lab import BARS, EVENTS, THOROUGH, Lab, cases
from tests.faults.recordings import trades, write_recording

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

_DEATHS_MAX = 10_000  # on a server every look is a transaction, and each signal is a message
_EACH = 6
"""So many meetings of a boundary are tried one by one in the long campaign, later ones at growing
distances, since most of them are of the same kind."""
_BUSES = {"embedded": "postgres", "redis": "sqlite", "kafka": "postgres"}
"""With the other store each is tried in the long campaign."""
_PAIRS = [
    (f"{bus}-{store}", boundary)
    for bus, few in _BUSES.items()
    for store in cases((few, "sqlite" if few == "postgres" else "postgres"), 1)
    for boundary in cases(boundaries(bus), 2 if bus == "embedded" else 1)
]


def _counts() -> Iterator[int]:
    """How often the boundary is met before the process dies: 1, 2, 4 and so on."""
    count = 1
    while count < _DEATHS_MAX:
        yield count
        step = 1 if count < _EACH else count // 3
        count += step if THOROUGH else count


@pytest.mark.parametrize(("deployment", "boundary"), _PAIRS, indirect=["deployment"])
def test_a_recording_survives_death_at(
    boundary: str,
    make_lab: Callable[..., Lab],
    record_property: Callable[[str, object], None],
) -> None:
    source, deaths = trades(17, 900, 30), 0
    for count in _counts():
        lab = make_lab(str(count), block_rows=300, micro_batch={"max_batch_size": 50})
        lines = write_recording(lab.path / "rec.ndjson", 17, source)
        command = ("run", str(lab.path / "rec.ndjson"))
        code = lab.start(*command, doom=f"{boundary}:{count}").wait()
        if code == 0:  # it was through before it came so far
            break
        assert code == -9
        deaths += 1
        lab.run(*command)
        (topic,) = checks.lane_topics(lab)
        assert checks.received(lab, topic) == lines
        assert checks.stored_bars(lab) == checks.check_topic(lab, topic)
        checks.check_published(lab, [topic.replace(EVENTS, BARS)])
        checks.check_files(lab)
        if count & (count - 1) == 0:
            checks.check_signals(lab)
    else:
        pytest.fail(f"the recording writes more than {_DEATHS_MAX} times")
    assert deaths, "the boundary was never met"
    record_property("kills of run", deaths)

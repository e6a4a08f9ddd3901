"""kill -9 at every write boundary of one short recording, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.faults import checks
from tests.faults.doomed import BOUNDARIES
from tests.faults.lab import BARS, EVENTS, Lab, cases
from tests.faults.recordings import trades, write_recording

STORES = ("sqlite", "postgres")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

_DEATHS_MAX = 100  # on a server every look is a transaction
_FIRST = ("mdp.bars:COMMIT:before", "mdp.dlq:COMMIT:before")
_ORDERED = [*_FIRST, *(boundary for boundary in BOUNDARIES if boundary not in _FIRST)]


@pytest.mark.parametrize("boundary", cases(_ORDERED, 2))
def test_a_recording_survives_death_at(
    boundary: str,
    make_lab: Callable[..., Lab],
    record_property: Callable[[str, object], None],
) -> None:
    source = trades(17, 900, 30)
    for count in range(1, _DEATHS_MAX):
        lab = make_lab(str(count), block_rows=300, micro_batch={"max_batch_size": 50})
        lines = write_recording(lab.path / "rec.ndjson", 17, source)
        command = ("run", str(lab.path / "rec.ndjson"))
        code = lab.start(*command, doom=f"{boundary}:{count}").wait()
        if code == 0:  # it was through before it came so far
            record_property("kills of run", count - 1)
            break
        assert code == -9
        lab.run(*command)
        (topic,) = checks.lane_topics(lab)
        assert sum(checks.read_topic(lab, topic).received) == lines
        assert checks.stored_bars(lab) == checks.check_topic(lab, topic)
        checks.check_published(lab, [topic.replace(EVENTS, BARS)])
        checks.check_files(lab)
    else:
        pytest.fail(f"the recording writes more than {_DEATHS_MAX} times")
    assert count > 1, "the boundary was never met"

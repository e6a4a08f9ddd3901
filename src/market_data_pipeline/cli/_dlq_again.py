"""``mdp dlq replay`` without a file: dead letters of the bus through the windows again."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import typer

from market_data_core.config import Settings
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import WriteCounts
from market_data_core.events import format_ts
from market_data_core.intervals import NS_PER_MS
from market_data_core.tables import BARS
from market_data_pipeline.assembly import LETTERS_TOPIC, Summary, window_spec
from market_data_pipeline.audit import Job
from market_data_pipeline.backends import Backends, open_backends, open_bus
from market_data_pipeline.cli import _output, _session, _writing
from market_data_pipeline.cli._dlq_topic import LetterSelection, no_letter
from market_data_pipeline.cli._dlq_writing import DRAIN_S, Failures, Handed
from market_data_pipeline.deadletter_replay import (
    EARLY,
    LETTERS_MAX,
    Guard,
    LettersRecording,
    Sorted,
    begun,
    refused_bar,
    sort_out,
)
from market_data_pipeline.flow import Flow
from market_data_pipeline.letters import (
    Found,
    Place,
    Replay,
    Replays,
    all_letters,
    letters_at,
)
from market_data_pipeline.signals.assembly import patient_evaluator
from market_data_pipeline.windows.checkpoint import Counts
from market_data_store.coordinator import WriteCoordinator

_COMMAND = "dlq-replay"


@dataclass(slots=True)
class _Survey:
    """What a replay would find.

    Attributes:
        unfinished: letters of replays that were interrupted.
        events: letters whose events would go through the windows.
        bars: letters whose bars would be written.
        refused: why letters cannot be replayed -> how many, by reason.
        before: letters that were asked for by id and have been replayed -> when, UTC ns.
    """

    unfinished: int = 0
    events: int = 0
    bars: int = 0
    refused: dict[str, Counter[str]] = field(default_factory=dict)
    before: dict[Place, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Done:
    """What a replay did."""

    events: int = 0
    bars: int = 0
    waiting: int = 0
    written: WriteCounts = field(default_factory=WriteCounts)
    failed: Counter[str] = field(default_factory=Counter)
    summary: Summary | None = None


def replay(settings: Settings, wanted: LetterSelection, limit: int | None, dry_run: bool) -> bool:
    """Carry the letters that are selected; True if nothing of what was asked for is left.

    Raises:
        MdpError: there is no letter of an id.
    """
    survey = _output.run_async(_survey(settings, wanted, limit))
    _tell_survey(survey)
    named = wanted.places is not None or wanted.reason is not None
    left = bool(named and any(why != EARLY for why in survey.refused))
    if not (survey.unfinished or survey.events or survey.bars):
        told = survey.refused or survey.before
        typer.echo("no dead letters to replay" if told else "no dead letters that are open")
        return not left
    if dry_run:
        for number, what in (
            (survey.unfinished, "of a replay that was interrupted would be carried on with"),
            (survey.events, "would go through the windows again"),
            (survey.bars, "would be written: bars that the database refused"),
        ):
            if number:
                typer.echo(f"{_many(number)} {what}")
        return not left
    done = _Done()

    async def work(flow: Flow, stop: asyncio.Event) -> Summary:
        async with open_backends(settings) as backends:
            await _Replayer(settings, backends, flow, stop, done).run(wanted, limit)
        return done.summary or Summary("", Counts(), WriteCounts(), 0, 0.0)

    job = Job(_COMMAND, "backfill", wanted.provider or "", LETTERS_TOPIC)
    summary = _session.execute(settings, work, _session.RECORDING, job)
    if done.summary:
        _session.report(settings, summary)
    _tell(done)
    return summary.counts.holds() and not (left or done.failed or done.waiting)


def _many(number: int) -> str:
    return f"{number:,} letter{'' if number == 1 else 's'}"


def _tell_survey(survey: _Survey) -> None:
    for place, at in survey.before.items():
        typer.echo(f"{place[0]}.{place[1]} was replayed at {format_ts(at)}")
    for why, reasons in survey.refused.items():
        listed = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
        sys.stderr.write(f"not replayable as they are: {listed}: {why}\n")


def _tell(done: _Done) -> None:
    if done.bars:
        typer.echo(f"{BARS.name}: {_writing.shown_counts(done.written)}")
    typer.echo(f"{_many(done.events + done.bars)} replayed")
    for error, number in done.failed.most_common():
        sys.stderr.write(f"{_many(number)} failed again: {error}\n")
    if done.waiting:
        sys.stderr.write(
            f"{_many(done.waiting)} not done yet: a live feed may still write their windows, or "
            "the replay was stopped; the same command goes on with them\n"
        )


async def _survey(settings: Settings, wanted: LetterSelection, limit: int | None) -> _Survey:
    survey = _Survey()
    bus = open_bus(settings)
    try:
        replays = await Replays.load(bus)
        if replays.letters is None:
            if wanted.places:
                raise no_letter(_id(min(wanted.places)))
            return survey
        if wanted.places:
            await _check_places(bus, replays, wanted.places, survey)
    finally:
        await bus.close()
    survey.unfinished = sum(len(list(replay.places)) for replay in replays.unfinished)
    async with open_backends(settings) as backends:
        async for out in _rounds(settings, backends, replays, wanted, limit):
            survey.events += len(out.events)
            survey.bars += len(out.bars)
            for why, reasons in out.reasons.items():
                survey.refused.setdefault(why, Counter()).update(reasons)
    return survey


async def _check_places(
    bus: Bus, replays: Replays, places: Iterable[Place], survey: _Survey
) -> None:
    wanted = sorted(places)
    there = {found.place for found in await letters_at(bus, wanted)}
    for place in wanted:
        if place not in there:
            raise no_letter(_id(place))
        if at := replays.done_at(place):
            survey.before[place] = at


def _id(place: Place) -> str:
    return f"{place[0]}.{place[1]}"


async def _rounds(
    settings: Settings,
    backends: Backends,
    replays: Replays,
    wanted: LetterSelection,
    limit: int | None,
) -> AsyncIterator[Sorted]:
    """The selected letters that are open, a bounded number at a time, oldest first."""
    guard = Guard(
        backends.bus,
        backends.store,
        settings.bus.group,
        window_spec(settings),
        settings.micro_batch.max_future_ms * NS_PER_MS,
    )
    left = limit
    waiting: list[Found] = []
    letters = all_letters(backends.bus)
    while left is None or left > 0:
        async for found in letters:
            taken = replays.done_at(found.place) or replays.is_taken(found.place)
            if wanted.fits(found) and not taken:
                waiting.append(found)
                if len(waiting) == LETTERS_MAX:
                    break
        if not waiting:
            return
        out = sort_out(waiting, backends.clock.now_ns())
        await guard.check(out)
        if left is not None:
            out = _first(out, left)
            left -= len(out.events) + len(out.bars)
        yield out
        waiting = []


def _first(out: Sorted, limit: int) -> Sorted:
    """Of the letters that can be replayed, the first `limit`."""
    chosen = sorted(found.place for found in (*out.events, *out.bars))[:limit]
    keep = set(chosen)
    return replace(
        out,
        events=[found for found in out.events if found.place in keep],
        bars=[found for found in out.bars if found.place in keep],
    )


class _Replayer:
    """Carries letters, those of interrupted replays first."""

    def __init__(
        self, settings: Settings, backends: Backends, flow: Flow, stop: asyncio.Event, done: _Done
    ) -> None:
        self._settings, self._backends, self._flow = settings, backends, flow
        self._evaluator = patient_evaluator(settings)
        self._stop, self._done = stop, done

    async def run(self, wanted: LetterSelection, limit: int | None) -> None:
        """Carry what is unfinished, then what is selected."""
        bus = self._backends.bus
        replays = await Replays.load(bus)
        for unfinished in replays.unfinished:
            if self._stop.is_set():
                return
            letters = await letters_at(bus, list(unfinished.places))
            if len(letters) == len(list(unfinished.places)):
                await self._carry(replays, unfinished, letters)
            else:
                sys.stderr.write(
                    f"replay {unfinished.name} cannot go on: some of its letters are gone from "
                    f"{LETTERS_TOPIC}; those that are left are open again\n"
                )
                await replays.say(bus, msgspec.structs.replace(unfinished, state="given_up"))
        replays = await Replays.load(bus)
        async for out in _rounds(self._settings, self._backends, replays, wanted, limit):
            if self._stop.is_set():
                return
            assert replays.letters is not None  # noqa: S101
            log_id = replays.letters.log_id
            if out.bars:
                await self._write(replays, log_id, out.bars)
            if out.events:
                statement = begun(log_id, out.events)
                await replays.say(bus, statement)
                await self._carry(replays, statement, out.events)

    async def _carry(self, replays: Replays, statement: Replay, letters: Sequence[Found]) -> None:
        """One lane, and the statement that it is through."""
        recording = LettersRecording(statement.log_id, letters)
        summary = await self._flow.record(recording, self._stop, evaluator=self._evaluator)
        self._add(summary)
        counts = summary.counts
        if counts.open or counts.received < len(letters) or self._stop.is_set():
            self._done.waiting += len(letters)
            return
        await replays.say(self._backends.bus, msgspec.structs.replace(statement, state="done"))
        self._done.events += len(letters)

    def _add(self, summary: Summary) -> None:
        total = self._done.summary
        if total is None:
            self._done.summary = summary
            return
        total.counts.add(summary.counts)
        total.written.add(summary.written)
        self._done.summary = replace(
            total,
            received=total.received + summary.received,
            seconds=total.seconds + summary.seconds,
            repeated=total.repeated and summary.repeated,
        )

    async def _write(self, replays: Replays, log_id: str, letters: Sequence[Found]) -> None:
        """Give bars that the database refused to it again."""
        failures = Failures(Path(LETTERS_TOPIC))
        sink = _writing.Tally(
            _writing.sink_of(self._backends.store, BARS.name), lambda handed: handed.item
        )
        # One worker: bars of one key are written in the order in which they were decided.
        async with WriteCoordinator[Handed](
            sink=sink, dlq=failures, coord_id=_COMMAND, workers=1, drain_timeout=DRAIN_S
        ) as coordinator:
            writing = asyncio.create_task(_through(coordinator, letters))
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({writing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not writing.done():  # what is stored already is written again without effect
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                self._done.waiting += len(letters)
                return
            await writing
        stored = []
        for found in letters:
            failed = failures.pop(found.id)
            if failed:
                _, error, reason = failed[0]
                self._done.failed[f"{reason}: {type(error).__name__}: {error}"] += 1
            else:
                stored.append(found)
        self._done.written.add(sink.counts)
        self._done.bars += len(stored)
        if stored:
            statement = msgspec.structs.replace(begun(log_id, stored), state="done")
            await replays.say(self._backends.bus, statement)


async def _through(coordinator: WriteCoordinator[Handed], letters: Sequence[Found]) -> None:
    await coordinator.submit_many(Handed(refused_bar(found), found.id) for found in letters)
    await coordinator.flush()

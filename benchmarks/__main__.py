"""Runs the contenders in turns and prints how they compare: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contender import CACHE, usable_cores
from benchmarks.side import Side
from benchmarks.worker import MODULES, contenders_of
from benchmarks.workload import Cache

GROUPS = {
    "engine": "Windows from ready data in memory; nothing is stored",
    "columns": "Whole path from columnar batches: durable bus, engine, store",
    "ndjson": "Whole path from a file of single version-1 events",
    "live": "The live edge",
    "redis": "Whole path through Redis Streams",
    "kafka": "Whole path through Kafka",
    "scale": "Workers that share the partitions of one topic",
    "inference": "Features, rules and models over many symbols",
    "store": "Rows into the store, in batches of 5,000",
    "start": "Starting the command",
}
EVENTS = 1_000_000
ROUNDS = 5


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((s.split(":", 1)[1].strip() for s in lines if "model name" in s), model)
    try:
        project = version("market-data-platform")
    except PackageNotFoundError:
        project = "source tree"
    return {
        "cpu": model,
        "cores": usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "market-data-platform": project,
    }


def chosen(names: Sequence[str], events: int) -> list[Side]:
    """The sides to run: whole groups, or single contenders with our side of their group.

    Raises:
        SystemExit: a name is neither a group nor a contender.
    """
    sides = [Side(c, module, events) for module in MODULES for c in contenders_of(module)]
    known = {*GROUPS, *(side.contender.name for side in sides)}
    if unknown := [name for name in names if name not in known]:
        message = f"no group or contender is called {unknown[0]!r}; there are {sorted(known)}"
        raise SystemExit(message)
    picked = {
        s.contender.group for s in sides if s.contender.name in names and not s.contender.ours
    }
    return [
        side
        for side in sides
        if not names
        or {side.contender.name, side.contender.group} & set(names)
        or (side.contender.ours and side.contender.group in picked)
    ]


def run_group(sides: list[Side], rounds: int) -> None:
    """All sides in turns, A B A B, after one round that is not counted."""
    for side in sides:
        if not side.contender.rounds_max:
            side.run()
            side.seconds.clear()
    for round_ in range(rounds):
        for side in sides:
            if side.wants(round_):
                print(f"  round {round_ + 1}: {side.contender.name}", file=sys.stderr, flush=True)
                side.run()
    for side in sides:
        side.stop()


def ratio(ours: Side, theirs: Side) -> float | None:
    """Median over the rounds of their time by ours: how many times faster we are."""
    pairs = list(zip(ours.seconds, theirs.seconds, strict=False))
    return statistics.median(t / o for o, t in pairs) if pairs else None


def row(side: Side, reference: Side | None) -> dict[str, Any]:
    """One line of a table."""
    rates = sorted(side.events / seconds for seconds in side.seconds)
    against = ratio(reference, side) if reference and reference is not side else None
    return {
        "contender": side.contender.name,
        "ours": side.contender.ours,
        "cores": side.contender.cores or "all",
        "events_per_s": statistics.median(rates) if rates else None,
        "events_per_s_min": rates[0] if rates else None,
        "events_per_s_max": rates[-1] if rates else None,
        "rounds": len(rates),
        "ratio_ours_to_theirs": against,
        "figures": side.figures,
        "problem": side.problem,
        "remark": side.contender.remark,
        "versions": side.versions,
    }


def rate_line(line: dict[str, Any]) -> str:
    """A contender as a row of a Markdown table."""
    name = f"**{line['contender']}**" if line["ours"] else line["contender"]
    remark = ", ".join([*(f"{k} {v}" for k, v in line["versions"].items()), line["remark"]])
    if line["events_per_s"] is None:
        return f"| {name} | {line['cores']} | — | — | {line['problem']} |"
    median, low, high = (
        f"{line[key] / 1e6:.3g}" for key in ("events_per_s", "events_per_s_min", "events_per_s_max")
    )
    times = line["ratio_ours_to_theirs"]
    against = f"{times:.3g}×" if times is not None else "—"
    return f"| {name} | {line['cores']} | {median} ({low} … {high}) | {against} | {remark} |"


def show(group: str, lines: list[dict[str, Any]]) -> None:
    """Print a group's table."""
    print(f"\n### {group}: {GROUPS[group]}\n")
    rated = [line for line in lines if not line["figures"]]
    if any(line["events_per_s"] for line in rated):
        print("| contender | cores | M events/s: median (min … max) | ours ÷ theirs | remark |")
        print("|---|---|---|---|---|")
        print("\n".join(rate_line(line) for line in rated))
    else:
        for line in rated:
            print(f"{line['contender']}: {line['problem']}")
    if figures := [figure for line in lines for figure in line["figures"]]:
        print("| figure | value | bound | holds |")
        print("|---|---|---|---|")
    for figure in figures:
        holds = {True: "yes", False: "NO", None: ""}[figure["holds"]]
        value = f"{figure['value']:.4g} {figure['unit']}"
        print(f"| {figure['name']} | {value} | {figure['bound']} | {holds} |")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"groups ({', '.join(GROUPS)}) or contenders")
    parser.add_argument("--events", type=int, default=EVENTS, help="rows (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--list", action="store_true", help="name the contenders and stop")
    parsed = parser.parse_args()
    if parsed.events < 1_000 or parsed.rounds < 1:
        parser.error("--events must be at least 1000 and --rounds at least 1")
    return parsed


def main() -> int:
    """Run what was asked for; 1 if a contender failed or found another answer."""
    args = arguments()
    sides = chosen(args.names, args.events)
    if args.list:
        for side in sides:
            print(f"{side.contender.group:8} {side.contender.name:16} {side.contender.remark}")
        return 0
    cache = Cache(CACHE, args.events)
    cache.answer()  # made here, once, so that no contender needs polars for the check
    if any(side.contender.group == "ndjson" for side in sides):
        cache.write_ndjson()
    report: dict[str, Any] = {"machine": machine(), "events": args.events, "groups": {}}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    print(f"{args.events:,} events, {args.rounds} rounds in turns")
    for group in GROUPS:
        members = [side for side in sides if side.contender.group == group]
        if not members:
            continue
        run_group(members, args.rounds)
        reference = next((s for s in members if s.contender.ours and s.seconds), None)
        report["groups"][group] = lines = [row(side, reference) for side in members]
        show(group, lines)
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    return int(any(s.problem.startswith(("failed", "WRONG")) for s in sides))


if __name__ == "__main__":
    sys.exit(main())

"""Train a model on stored bars, serve it, and compare: it sees in service what it learned from.

    python examples/train_and_serve.py
    python examples/train_and_serve.py trades-2025-10-*.csv --folder model

Without recordings a market is invented. Needs the extra `sklearn`. What happens:

1. the recordings become bars: ``mdp run``;
2. ``mdp features export`` writes one row for each bar: features, and the return that followed;
3. a random forest learns from the first part of the time whether the price will rise, fall or stay,
   and is tried on the rest;
4. it is saved with skops, and a configuration is written that serves it;
5. the same recordings run through ``mdp run`` once more, with the model: each answer is a signal;
6. the stored signals are compared with what the model says about the exported rows. They are equal.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import skops.io
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

FEATURES = ["ret_4s", "ret_20s", "volatility", "rsi", "zscore", "volume_ratio"]
LABEL = "20s"
TRAINED = 0.7
"""Part of the time that the model learns from."""

CONFIG = """\
version: 1
store: {uri: "sqlite:///market.db"}
telemetry: {metrics_port: 0}
micro_batch: {windows: [2s]}
features:
  windows:
    - {name: ret_4s, horizon: 4s}
    - {name: ret_20s, horizon: 20s}
inference:
  adapters:
    rules: {enabled: false}
"""
SERVED = """\
    sklearn:
      enabled: true
      model_path: direction.skops
      name: direction
"""


class Deployment:
    """A folder with a configuration, in which commands are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.yaml").write_text(CONFIG)
        (folder / "serve.yaml").write_text(CONFIG + SERVED)

    def mdp(self, *arguments: str) -> str:
        """What a command prints."""
        print(f"$ mdp {' '.join(arguments)}", flush=True)
        start = "from market_data_pipeline.cli import main; main()"
        done = subprocess.run(  # noqa: S603  (our own command line)
            [sys.executable, "-c", start, *arguments],
            cwd=self.folder,
            env={**os.environ, "MDP_HOME": ".mdp"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.returncode)
        return done.stdout


def invent(path: Path, seconds: int, symbols: int = 8, rate: int = 3) -> None:
    """Trades of a market whose prices swing a little around where they are going."""
    rng = np.random.default_rng(1)
    parts = []
    for number in range(symbols):
        drift, swing = np.cumsum(rng.normal(0, 3e-5, seconds)), np.zeros(seconds)
        for second in range(1, seconds):
            swing[second] = 0.9 * swing[second - 1] + rng.normal(0, 4e-4)
        price = rng.uniform(100, 200) * np.exp(drift + swing)
        at = np.sort(rng.integers(0, seconds * 1_000, seconds * rate))
        parts.append(
            pl.DataFrame(
                {
                    "timestamp": 1_761_314_400_000 + at,
                    "symbol": f"S{number}",
                    "price": np.round(price[at // 1_000], 2),
                    "size": rng.integers(1, 100, len(at)),
                }
            )
        )
    pl.concat(parts).sort("timestamp", maintain_order=True).write_csv(path)


def classes(returns: pl.Series, border: float) -> NDArray[Any]:
    """Shape (n,): 1 for a return above the border, -1 for one below its opposite, else 0."""
    values = returns.to_numpy()
    return np.where(values > border, 1, np.where(values < -border, -1, 0))


def train(matrix: pl.DataFrame) -> RandomForestClassifier:
    """A forest, learned from the first part of the time and tried on the rest."""
    label = f"label_{LABEL}"
    known = matrix.drop_nulls([*FEATURES, label])
    starts = known["ts"].to_physical().to_numpy()
    border_ts = int(starts.min() + (starts.max() - starts.min()) * TRAINED)
    # labels of what is learned from must not look into what the model is tried on
    learned = known.filter(starts < border_ts - int(LABEL.removesuffix("s")) * 10**9)
    tried = known.filter(starts >= border_ts)
    if learned.is_empty() or tried.is_empty():
        sys.exit("error: the recordings are too short to learn from and to try the model on")
    border = float(learned[label].abs().quantile(0.4) or 0.0)
    forest = RandomForestClassifier(50, max_depth=6, min_samples_leaf=20, random_state=1, n_jobs=1)
    forest.fit(learned.select(FEATURES), classes(learned[label], border))
    wanted = classes(tried[label], border)
    usual = max(float((wanted == value).mean()) for value in (-1, 0, 1))
    hit = float(np.mean(forest.predict(tried.select(FEATURES)) == wanted))
    print(f"learned from {len(learned):,} rows, tried on {len(tried):,} later ones:")
    print(f"{hit:.1%} right; always saying the commonest class: {usual:.1%}")
    return forest


def compare(forest: RandomForestClassifier, matrix: pl.DataFrame, signals: pl.DataFrame) -> bool:
    """Whether the signals are what the model says about the exported rows, bit for bit."""
    rows = matrix.drop_nulls(FEATURES)
    asked = rows.select(FEATURES)
    offline = rows.select("provider", "symbol", pl.col("end").alias("ts")).with_columns(
        value=pl.Series(forest.predict(asked).astype(np.float64)),
        score=pl.Series(forest.predict_proba(asked).max(axis=1)),
    )
    served = signals.filter(pl.col("name") == "direction").select(offline.columns)
    print(f"{len(offline):,} rows with all features, {len(served):,} signals")
    key = ["provider", "symbol", "ts"]
    return offline.sort(key).equals(served.sort(key))


def run(folder: Path, files: Sequence[Path], minutes: int) -> int:
    """All steps; 0 if service and training agree."""
    there = Deployment(folder)
    if not files:
        files = [folder / "trades.csv"]
        invent(files[0], 60 * minutes)
    recordings = [str(file.resolve()) for file in files]
    print(there.mdp("run", *recordings, "--as", "rec", "-c", "train.yaml"))

    asked = ("--columns", ",".join(FEATURES), "--label", LABEL)
    there.mdp("features", "export", *asked, "-o", "matrix.parquet", "-c", "train.yaml")
    matrix = pl.read_parquet(folder / "matrix.parquet")
    forest = train(matrix)
    skops.io.dump(forest, folder / "direction.skops")

    print(there.mdp("run", *recordings, "--as", "rec", "-c", "serve.yaml"))
    there.mdp("store", "export", "signals", "signals.parquet", "-c", "serve.yaml")
    equal = compare(forest, matrix, pl.read_parquet(folder / "signals.parquet"))
    print("served = trained" if equal else "served ≠ trained")
    return 0 if equal else 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="recordings; default: invented trades")
    parser.add_argument("--folder", type=Path, help="kept afterwards; default: a temporary one")
    parser.add_argument("--minutes", type=int, default=30, help="of invented trades; %(default)s")
    given = parser.parse_args()
    if given.folder:
        return run(given.folder, given.files, given.minutes)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), given.files, given.minutes)


if __name__ == "__main__":
    sys.exit(main())

"""The example of training and serving runs as it stands, and would tell if the two differed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_and_serve.py"

pytestmark = pytest.mark.timeout(180)


def example() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("train_and_serve", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_served_is_what_was_trained(tmp_path: Path) -> None:
    pytest.importorskip("skops")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--minutes", "10"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.endswith("served = trained\n")
    assert "0 inserted, 0 updated, 2,390 unchanged" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["value", "score", "time", "missing", "more"])
def test_the_comparison_finds_every_difference(change: str) -> None:
    pytest.importorskip("skops")
    train_and_serve = example()

    rng = np.random.default_rng(0)
    n = 300
    matrix = pl.DataFrame({name: rng.normal(size=n) for name in train_and_serve.FEATURES})
    ts = pl.datetime_range(
        pl.datetime(2025, 1, 1), pl.datetime(2025, 1, 2), "2s", time_unit="ns", eager=True
    )
    matrix = matrix.with_columns(
        provider=pl.lit("rec"), symbol=pl.lit("A"), ts=ts[:n], end=ts[1 : n + 1]
    ).with_columns(pl.Series("label_20s", rng.normal(size=n)))
    forest = train_and_serve.train(matrix)
    asked = matrix.select(train_and_serve.FEATURES)
    served = matrix.select(
        "provider",
        "symbol",
        ts="end",
        name=pl.lit("direction"),
        value=pl.Series(forest.predict(asked).astype(float)),
        score=pl.Series(forest.predict_proba(asked).max(axis=1)),
    )
    assert train_and_serve.compare(forest, matrix, served)

    one = pl.int_range(pl.len()) == 7
    other = {
        "value": served.with_columns(pl.when(one).then(2.0).otherwise("value").alias("value")),
        "score": served.with_columns(score=pl.col("score") + pl.when(one).then(1e-15).otherwise(0)),
        "time": served.with_columns(ts=pl.col("ts") + pl.duration(nanoseconds=one.cast(int))),
        "missing": served[1:],
        "more": pl.concat([served, served[:1]]),
    }[change]
    assert not train_and_serve.compare(forest, matrix, other)

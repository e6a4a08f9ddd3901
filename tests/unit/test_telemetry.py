"""Metrics are served where they were announced; log lines hold no secrets."""

from __future__ import annotations

import json
import logging
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from market_data_core.errors import UsageError
from market_data_pipeline import metrics, telemetry
from market_data_pipeline.metrics import BoundedLabel

CONTRACT = {
    "stream_events_ingested_total": ("counter", {"bus", "topic", "provider"}),
    "stream_consumer_lag_ms": ("gauge", {"topic", "group", "consumer"}),
    "microbatch_flush_total": ("counter", {"window_ms", "symbol"}),
    "microbatch_flush_rows": ("gauge", {"window_ms"}),
    "microbatch_window_latency_ms": ("histogram", set()),
    "microbatch_open_windows": ("gauge", set()),
    "store_write_duration_seconds": ("histogram", {"table"}),
    "pipeline_heartbeat_timestamp_seconds": ("gauge", {"component"}),
    "pipeline_events_total": ("counter", {"stage", "outcome"}),
    "pipeline_events_open": ("gauge", set()),
    "pipeline_rate_scale_factor": ("gauge", {"provider"}),
    "pipeline_backpressure_state": ("gauge", {"provider"}),
    "pipeline_feedback_queue_depth": ("gauge", {"source"}),
    "pipeline_feedback_processing_latency_ms": ("histogram", set()),
    "errors_total": ("counter", {"component", "reason"}),
    "retries_total": ("counter", {"component"}),
    "features_update_duration_seconds": ("histogram", {"symbol", "window"}),
    "inference_eval_duration_seconds": ("histogram", {"adapter"}),
    "inference_rows_unknown_total": ("counter", {"adapter"}),
    "signals_emitted_total": ("counter", {"name", "adapter"}),
    "signals_retracted_total": ("counter", {"name", "adapter"}),
    "archive_rows_total": ("counter", {"kind"}),
    "archive_files_total": ("counter", set()),
    "archive_bytes_total": ("counter", set()),
    "archive_waiting_bytes": ("gauge", set()),
}


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    yield
    root.handlers[:] = before[1]
    root.setLevel(before[0])
    structlog.reset_defaults()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_every_metric_has_its_name_type_and_labels() -> None:
    ours = [m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)]
    text = generate_latest(REGISTRY).decode()
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    found = {}
    for metric in ours:
        described = next(iter(metric.describe()))
        name = described.name + ("_total" if described.type == "counter" else "")
        found[name] = (types[name], set(metric._labelnames))
        assert described.documentation.endswith(".")
    assert found == CONTRACT


def test_window_latency_buckets_tell_window_lengths_apart() -> None:
    bounds = metrics.MICROBATCH_WINDOW_LATENCY_MS._upper_bounds
    for window_ms in (500, 1000, 2000, 5000, 10_000):
        assert window_ms in bounds
        assert window_ms * 1.5 in bounds


def test_metrics_are_served_on_the_wanted_port() -> None:
    metrics.RETRIES.labels("test_telemetry").inc(3)
    port = telemetry.serve_metrics(0)
    text = fetch(port)
    assert 'retries_total{component="test_telemetry"} 3.0' in text
    assert "_created" not in text


@pytest.mark.parametrize(("announce", "level"), [(True, "info"), (False, "debug")])
def test_where_metrics_are_served_is_told_once(announce: bool, level: str) -> None:
    with structlog.testing.capture_logs() as logs:
        telemetry.serve_metrics(0, announce=announce)
    assert [(line["event"], line["log_level"]) for line in logs] == [("metrics are served", level)]


def test_a_taken_port_moves_to_the_next_and_says_so(taken_port: int) -> None:
    with structlog.testing.capture_logs() as logs:
        port = telemetry.serve_metrics(taken_port)
    assert taken_port < port < taken_port + 100
    assert "retries_total" in fetch(port)
    assert logs[0]["log_level"] == "warning"
    assert (logs[0]["wanted"], logs[0]["port"]) == (taken_port, port)


def test_no_port_and_no_address(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_PORTS_TRIED", 1)
    with pytest.raises(UsageError, match=rf"ports {taken_port} to {taken_port} .*metrics_port"):
        telemetry.serve_metrics(taken_port)
    with pytest.raises(UsageError, match=r"cannot be served on 203\.0\.113\.1:"):
        telemetry.serve_metrics(0, "203.0.113.1")


def test_a_bounded_label_keeps_its_first_values() -> None:
    label = BoundedLabel(2)
    assert [label(s) for s in ("A", "B", "C", "A", "D")] == ["A", "B", "other", "A", "other"]
    assert BoundedLabel(0)("A") == "other"


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_json_lines_go_to_stderr_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("info", json=True)
    log = structlog.get_logger("mdp.test")
    log.debug("hidden")
    log.info("opened redis://:hunter2@h", uri="postgresql://u:hunter2@h/d", password="hunter2")
    log.warning(
        "nested", settings={"api_key": "hunter2", "token": 7}, cause=OSError("a://b:hunter2@c")
    )
    logging.getLogger("driver").error("cannot connect to %s", "kafka://u:hunter2@h")
    try:
        raise ConnectionError("postgresql://u:hunter2@h")
    except ConnectionError:
        log.exception("failed")
    lines = logged(capsys)
    assert "hunter2" not in json.dumps(lines)
    assert [line["level"] for line in lines] == ["info", "warning", "error", "error"]
    assert lines[0]["event"] == "opened redis://:***@h"
    assert lines[0]["uri"] == "postgresql://u:***@h/d"
    assert lines[0]["logger"] == "mdp.test"
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[1]["settings"] == {"api_key": "***", "token": 7}
    assert lines[2]["event"] == "cannot connect to kafka://u:***@h"
    assert "Traceback" in lines[3]["exception"]


def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("WARNING")
    structlog.get_logger().info("hidden")
    structlog.get_logger().warning("slow", lag_ms=7)
    out, err = capsys.readouterr()
    assert out == ""
    assert "slow" in err
    assert "lag_ms=7" in err
    assert "hidden" not in err


def test_an_unknown_level() -> None:
    with pytest.raises(UsageError, match="'LOUD' is not one of DEBUG, INFO"):
        telemetry.configure_logging("LOUD")

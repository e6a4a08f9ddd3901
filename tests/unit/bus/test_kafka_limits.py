"""How large a message for Kafka may be: what the topic takes, as far as that can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from market_data_core.config import KafkaBusSettings
from market_data_core.errors import TransientError, UsageError
from market_data_pipeline.bus._kafka_link import Link
from market_data_pipeline.bus._kafka_topics import Topics

OURS = 16 << 20


class Admin:
    """Answers what a topic's settings are."""

    def __init__(self, answer: int | str | None) -> None:
        self._answer = answer

    def describe_configs(self, asked: list[Any], **_: float) -> Mapping[Any, Future[Any]]:
        future: Future[Any] = Future()
        if isinstance(self._answer, int):
            future.set_exception(KafkaException(KafkaError(self._answer)))
        else:
            known = {"max.message.bytes": self._answer} if self._answer else {}
            future.set_result({n: SimpleNamespace(value=v) for n, v in known.items()})
        return {asked[0]: future}

    def poll(self, _: float) -> None: ...


def limit(answer: int | str | None, **settings: Any) -> int:
    link = Link(KafkaBusSettings(bootstrap_servers="127.0.0.1:1", **settings), "g")
    link.admin = Admin(answer)  # type: ignore[assignment]
    return Topics(link, 1).message_bytes_max("t")


@pytest.mark.parametrize(
    ("answer", "settings", "expected"),
    [
        ("2000000", {}, 2_000_000),
        ("1048588", {}, 1_048_588),  # what brokers are shipped with
        ("99999999", {}, OURS),
        ("500000", {"options": {"batch.size": 500_000}}, 500_000),
        ("500000", {"message_max_bytes": 400_000}, 400_000),
        (None, {}, OURS),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, {}, OURS),
        (KafkaError._UNSUPPORTED_FEATURE, {}, OURS),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, {}, OURS),
    ],
)
def test_the_least_of_what_we_and_the_topic_take(
    answer: int | str | None, settings: dict[str, Any], expected: int
) -> None:
    assert limit(answer, **settings) == expected


@pytest.mark.parametrize(
    ("answer", "settings"),
    [
        ("999999", {}),
        ("499999", {"message_max_bytes": 500_000}),
        ("2000000", {"options": {"batch.size": 2_000_001}}),
    ],
)
def test_a_topic_takes_whole_batches(answer: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"'t' takes messages of {answer} .* to {answer} at most"):
        limit(answer, **settings)


def test_brokers_that_do_not_answer_are_asked_again() -> None:
    with pytest.raises(TransientError):
        limit(KafkaError._TIMED_OUT)

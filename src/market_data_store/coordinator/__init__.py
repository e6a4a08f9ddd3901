"""Batched, patient writing: queue, workers, retries, circuit breaker, dead letters, feedback."""

from market_data_store.coordinator._dlq_lines import UNREADABLE, DeadLine, Selection
from market_data_store.coordinator.coordinator import UnwrittenError, WriteCoordinator
from market_data_store.coordinator.dead_letter import DeadLetterQueue, DeadRecord
from market_data_store.coordinator.feedback import (
    FeedbackBus,
    FeedbackSink,
    HttpFeedbackBroadcaster,
)
from market_data_store.coordinator.intake import CoordinatorClosedError, QueueFullError
from market_data_store.coordinator.item_codec import register_model
from market_data_store.coordinator.observe import CoordinatorHealth
from market_data_store.coordinator.policy import CircuitBreaker, RetryPolicy, classify
from market_data_store.coordinator.settings import CoordinatorRuntimeSettings
from market_data_store.coordinator.worker import Sink

__all__ = [
    "UNREADABLE",
    "CircuitBreaker",
    "CoordinatorClosedError",
    "CoordinatorHealth",
    "CoordinatorRuntimeSettings",
    "DeadLetterQueue",
    "DeadLine",
    "DeadRecord",
    "FeedbackBus",
    "FeedbackSink",
    "HttpFeedbackBroadcaster",
    "QueueFullError",
    "RetryPolicy",
    "Selection",
    "Sink",
    "UnwrittenError",
    "WriteCoordinator",
    "classify",
    "register_model",
]

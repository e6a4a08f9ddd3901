"""The settings of the bus: section ``bus`` of ``configs/streaming.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from market_data_core._config_types import SettingsModel, Size, Uri, check_distinct, from_env

_TOPIC = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"


class RetentionSettings(SettingsModel):
    """How long the bus keeps what every reader has passed."""

    hours: float = Field(
        default=168, gt=0, description="Age, in hours, from which records may be trimmed."
    )
    max_bytes: Size = Field(
        default=20 * 10**9,
        description="Size of a topic from which its oldest records may be trimmed: bytes, or a "
        "text such as 20GB or 512MiB.",
        json_schema_extra={"shown_default": "20GB"},
    )


class EmbeddedBusSettings(SettingsModel):
    """The bus without a server."""

    path: Path = from_env("${MDP_HOME:-.mdp}/bus", "Folder of the topics' files.")
    synchronous: Literal["normal", "full"] = Field(
        default="normal",
        description="`normal`: an append survives the death of every process. `full`: also the "
        "loss of power, at the price of one disk flush per append.",
    )


class RedisBusSettings(SettingsModel):
    """Redis Streams; the stream names serve every bus."""

    uri: Uri = from_env(
        "${REDIS_URI:-redis://redis:6379/0}",
        "Where the Redis server is: `redis://user:password@host:6379/0`, `rediss://…` with TLS, "
        "`unix://…`, or by sentinels `redis+sentinel://host,host/service/0`, with TLS "
        "`rediss+sentinel://…`.",
    )
    key_prefix: str = Field(
        default="", pattern=r"^[A-Za-z0-9._:-]*$", description="What every key begins with."
    )
    replicas: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Replicas that must have an append before it counts; 0: none.",
    )
    stream: str = Field(default="mdp.events", pattern=_TOPIC, description="Topic of the events.")
    bars_stream: str = Field(default="mdp.bars", pattern=_TOPIC, description="Topic of the bars.")
    signals_stream: str = Field(
        default="mdp.signals", pattern=_TOPIC, description="Topic of the signals."
    )
    consumer_group: str = Field(
        default="mdp-consumers", pattern=_TOPIC, description="Group that shares the partitions."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct([self.stream, self.bars_stream, self.signals_stream])
        return self


def _as_text(value: Any) -> Any:
    """Numbers and switches as Kafka writes them; YAML reads them as what they are."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


Texts = dict[str, Annotated[str, BeforeValidator(_as_text)]]


class KafkaBusSettings(SettingsModel):
    """Kafka and what speaks its protocol."""

    bootstrap_servers: str = from_env(
        "${KAFKA_BOOTSTRAP:-localhost:9092}", "Brokers to begin with, host:port, comma-separated."
    )
    topic_prefix: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,47})?$",
        description="What the name of every topic begins with on the brokers.",
    )
    replication_factor: int = Field(
        default=-1,
        ge=-1,
        le=32_767,
        description="Copies of each partition of a topic that is created; -1: as the brokers say.",
    )
    topic_config: Texts = Field(
        default_factory=dict,
        description="Settings of a topic that is created, such as `{min.insync.replicas: 2}`.",
    )
    compression: Literal["none", "lz4", "zstd", "snappy", "gzip"] = Field(
        default="none",
        description="How batches are packed. Columns are packed already; `lz4` or `zstd` pay for "
        "single events as JSON.",
    )
    message_max_bytes: Size = Field(
        default=16 << 20,
        le=1_000_000_000,
        description="Largest message that is written, and that a created topic takes.",
        json_schema_extra={"shown_default": "16MiB"},
    )
    timeout_ms: int = Field(
        default=5000,
        ge=100,
        le=600_000,
        description="Longest wait for an answer of the brokers before the call is made again, "
        "in ms.",
    )
    session_timeout_ms: int = Field(
        default=6000,
        ge=1000,
        le=3_600_000,
        description="Silence after which a member of the group loses its partitions, in ms.",
    )
    group_instance_id: str = Field(
        default="",
        max_length=249,
        description="Name that stays over restarts, another one for each process: then a restart "
        "within the session timeout moves no partitions. Empty: none.",
    )
    options: Texts = Field(
        default_factory=dict,
        repr=False,
        description="Options of librdkafka as they are, such as `{security.protocol: SASL_SSL, "
        "sasl.mechanisms: PLAIN, sasl.username: …, sasl.password: …}`.",
    )


class BusSettings(SettingsModel):
    """The durable log."""

    type: Literal["embedded", "redis", "kafka"] = Field(
        default="embedded", description="Which bus; `embedded` needs no server."
    )
    codec: Literal["columnar", "json", "msgpack"] = Field(
        default="columnar", description="How events are written; readers recognise every codec."
    )
    partitions: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Partitions of an event topic that does not exist yet; a symbol stays in one.",
    )
    linger_ms: float = Field(
        default=5, ge=0, le=1000, description="Longest wait for more events before a write, in ms."
    )
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    embedded: EmbeddedBusSettings = Field(default_factory=EmbeddedBusSettings)
    redis: RedisBusSettings = Field(default_factory=RedisBusSettings)
    kafka: KafkaBusSettings = Field(default_factory=KafkaBusSettings)

    @property
    def events_topic(self) -> str:
        """Topic of the events, on any bus."""
        return self.redis.stream

    @property
    def bars_topic(self) -> str:
        """Topic of the bars, on any bus."""
        return self.redis.bars_stream

    @property
    def signals_topic(self) -> str:
        """Topic of the signals, on any bus."""
        return self.redis.signals_stream

    @property
    def group(self) -> str:
        """Name of the consumer group, on any bus."""
        return self.redis.consumer_group

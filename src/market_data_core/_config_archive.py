"""The settings of the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from market_data_core._config_types import SettingsModel, Size, from_env


class ArchiveSettings(SettingsModel):
    """Every event of the log as Parquet files."""

    path: Path = from_env(
        "${MDP_HOME:-.mdp}/archive", "Folder of the files; the same one for all archivers."
    )
    file_bytes_max: Size = Field(
        default=128 * 10**6,
        description="Most bytes of a file; a partition's waiting events are written when they "
        "take so much memory.",
        json_schema_extra={"shown_default": "128MB"},
    )
    file_seconds_max: float = Field(
        default=60, gt=0, le=86_400, description="How long events may wait for their file, in s."
    )
    memory_bytes_max: Size = Field(
        default=512 * 10**6,
        description="Memory of all waiting events at which reading stops until some are written.",
        json_schema_extra={"shown_default": "512MB"},
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.memory_bytes_max < self.file_bytes_max:
            msg = (
                f"memory_bytes_max ({self.memory_bytes_max}) must not be less than "
                f"file_bytes_max ({self.file_bytes_max})"
            )
            raise ValueError(msg)
        return self

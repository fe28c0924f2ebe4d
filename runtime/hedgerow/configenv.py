"""Overrides configuration values from the environment: HEDGEROW_BROKER__URL=mqtts://broker:8883.

Imported only if such variables are set, because pydantic-settings takes six megabytes of memory.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hedgerow.config import NodeConfig


class OverriddenConfig(BaseSettings, NodeConfig):
    """A node's configuration with overrides from the environment."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="HEDGEROW_", env_nested_delimiter="__", title="Hedgerow node"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment first, then the file, and nothing else."""
        return env_settings, init_settings

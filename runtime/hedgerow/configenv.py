"""What the environment says goes over what the file says: HEDGEROW_BROKER__URL=mqtts://broker:8883.

A module of its own, imported only where such variables are set: the library behind it takes six megabytes.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hedgerow.config import NodeConfig


class OverriddenConfig(BaseSettings, NodeConfig):
    """A node's configuration that reads the environment too."""

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
        """The environment goes over the file; nothing else is read."""
        return env_settings, init_settings

"""Overrides configuration values from the environment: HEDGEROW_BROKER__URL=mqtts://broker:8883.

Imported only if such variables are set, because pydantic-settings takes six megabytes of memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Final

from pydantic import BaseModel
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


PREFIX: Final = "HEDGEROW_"
_OTHERS: Final = frozenset({"HEDGEROW_TRUST_PASSPHRASE", "HEDGEROW_TRUST_PIN", "HEDGEROW_TOKEN_PIN"})
"""Variables that override no setting: those of `trust.keys` and `enrolment.token_keys`."""


def unknown_variables(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that override nothing, which pydantic-settings would ignore, each with the one probably meant.

    Variables that Kubernetes sets for a service called `hedgerow-…` (`…_SERVICE_HOST`, `…_PORT`) are not meant for us.

    Args:
        names: of all environment variables.
    """
    ours = {name: name.upper() for name in names if name.upper().startswith(PREFIX)}
    services = tuple(name.removesuffix("SERVICE_HOST") for name in ours.values() if name.endswith("_SERVICE_HOST"))
    beginnings = tuple(f"{service}{part}" for service in services for part in ("SERVICE_", "PORT"))
    for name, upper in ours.items():
        section = upper.removeprefix(PREFIX).partition("__")[0].lower()
        if section in NodeConfig.model_fields or upper in _OTHERS or (beginnings and upper.startswith(beginnings)):
            continue
        near = difflib.get_close_matches(upper.removeprefix(PREFIX), _SETTINGS, n=1, cutoff=0.7)
        yield name, f"{PREFIX}{near[0]}" if near else ""


def _settings(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name.upper()}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name.upper()}__")


_SETTINGS: Final = tuple(_settings(NodeConfig, ""))

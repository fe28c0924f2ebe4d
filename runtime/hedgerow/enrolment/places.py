"""Places: what the nodes of a topology get when a machine enrols as one. `topology render` writes them to one file.

It is JSON below the header of rendered files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hedgerow.errors import ConfigError, first_problem


class Place(BaseModel):
    """What a node gets.

    Attributes:
        configuration: text of its configuration file.
        files: further files that it names, in base64, by their path beside it.
        missing: those that are too large to be sent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    configuration: str
    files: dict[str, str] = Field(default_factory=dict)
    missing: list[str] = Field(default_factory=list)


class PlacesOfSite(BaseModel):
    """The places of a site.

    Attributes:
        broker: where machines ask; "" if only at the region's broker.
        nodes: those that enrol, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    broker: str = ""
    nodes: dict[str, Place]


class Places(BaseModel):
    """The places of a region.

    Attributes:
        broker: where machines of any site may ask at the region; "" if they may not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str
    broker: str = ""
    sites: Mapping[str, PlacesOfSite]

    def encode(self) -> str:
        """Return the text of the file, without header."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2).decode() + "\n"


def read_places(path: Path) -> Places:
    """Read the file.

    Raises: ConfigError: it cannot be read, or is not one.
    """
    remedy = "Name the file `service/places.json` that `hedgerow topology render` writes for the region."
    try:
        text = path.read_text("utf-8")
        return Places.model_validate(orjson.loads("".join(line for line in text.splitlines(True) if line[:1] != "#")))
    except ValidationError as error:
        raise ConfigError(f"{path} has no places: {first_problem(error, 'places')}", remedy=remedy) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", remedy=remedy) from error
    except ValueError as error:
        raise ConfigError(f"{path} has no places: {error}", remedy=remedy) from error

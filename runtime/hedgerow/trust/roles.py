"""Roles of a repository: purpose, lifetime and paths of each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Signed, TargetFile

from hedgerow.errors import ConfigError
from hedgerow.labels import Selector, parse_selector
from hedgerow.models.bundle.manifest import MANIFEST, PIPELINES
from hedgerow.topics import is_name
from hedgerow.trust.errors import BadMetadata, BadRepository

TOP: Final = ("root", "targets", "snapshot", "timestamp")
ONLINE: Final = ("snapshot", "timestamp")

EXPLANATIONS: Final[Mapping[str, str]] = {
    "root": "names the valid keys of the other roles, and of itself. Several people hold one key each; a change needs several "
    "of them. Kept offline.",
    "targets": "states which owner may sign which models. Kept offline too, and used when owners come and go.",
    "owner": "signs the versions of its own models, and the nodes each is for. Held by the people who make the models.",
    "snapshot": "states which files belong together, so that nobody mixes old with new. Held by the region's service.",
    "timestamp": "states every day that this is still the newest, so that nobody holds updates back. Held by the region's "
    "service.",
}

LIFETIMES: Final[Mapping[str, timedelta]] = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    "owner": timedelta(days=365),
    "snapshot": timedelta(days=14),
    "timestamp": timedelta(days=7),
}
"""How long a role's metadata is valid. The region's service signs the timestamp again every day, the snapshot every week."""

REFRESH_EVERY: Final = timedelta(days=1)

SIGNED_AT: Final = "x-hedgerow-signed-at"
"""Field of signed metadata with its signing time in Unix seconds: a lower bound of the time."""

_NAME: Final = "x-hedgerow-name"


def named(key: Key, name: str) -> Key:
    """Give a key a readable name; its id and signatures do not change."""
    key.unrecognized_fields[_NAME] = name
    return key


def name_of(key: Key) -> str:
    """Return a key's name, or the beginning of its id."""
    name = key.unrecognized_fields.get(_NAME)
    return name if isinstance(name, str) and name else key.keyid[:8]


def lifetime(role: str) -> timedelta:
    """Return how long a role's metadata is valid."""
    return LIFETIMES.get(role, LIFETIMES["owner"])


def stamp(signed: Signed, role: str, now: float) -> None:
    """Set the signing time and expiry of metadata."""
    moment = datetime.fromtimestamp(int(now), UTC)
    signed.expires = moment + lifetime(role)
    signed.unrecognized_fields[SIGNED_AT] = int(now)


def signed_at(signed: Signed) -> float | None:
    """Return the signing time in Unix seconds; None: not stated."""
    value = signed.unrecognized_fields.get(SIGNED_AT)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else None


def target_path(name: str, version: str, file: str = MANIFEST) -> str:
    """Return the target path of a version: of a model's manifest, or of pipelines."""
    return f"{name}/{version}/{file}"


def patterns(models: Iterable[str], pipelines: Iterable[str] = ()) -> list[str]:
    """Return the target patterns for an owner's models and pipelines.

    Whoever may sign a model may not sign pipelines of the same name, which can do more on a node.

    Raises: BadRepository: one is neither a name nor a pattern.
    """
    found = set()
    for names, file, what in ((models, MANIFEST, "model"), (pipelines, PIPELINES, "pipelines")):
        for name in names:
            if not is_name(name.replace("*", "x")):
                raise BadRepository(
                    f"{name!r} is not a valid {what} name or pattern",
                    remedy="Use a name, or a pattern with `*`, such as `vision-*`.",
                )
            found.add(target_path(name, "*", file))
    return sorted(found)


def models_of(role: DelegatedRole) -> list[str]:
    """Return the models a role may sign, as names or patterns."""
    return [pattern.partition("/")[0] for pattern in role.paths or () if pattern.endswith(f"/{MANIFEST}")]


def pipelines_of(role: DelegatedRole) -> list[str]:
    """Return the pipelines a role may sign, as names or patterns."""
    return [pattern.partition("/")[0] for pattern in role.paths or () if pattern.endswith(f"/{PIPELINES}")]


def custom(selector: Selector) -> dict[str, Any]:
    """Return the custom field of a target."""
    return {"hedgerow": {"selector": str(selector)}}


def selector_of(target: TargetFile) -> Selector:
    """Return the nodes a target is for; all, unless it states otherwise.

    Raises: BadMetadata: its selector is invalid.
    """
    fields = target.custom
    ours = fields.get("hedgerow", {}) if isinstance(fields, dict) else {}
    text = ours.get("selector", "") if isinstance(ours, dict) else None
    try:
        if isinstance(text, str):
            return parse_selector(text)
    except ConfigError as error:
        raise BadMetadata(f"{target.path} has an invalid selector: {error}") from error
    raise BadMetadata(f"{target.path} has an unreadable selector")

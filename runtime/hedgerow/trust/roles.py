"""The roles of a repository: what each is for, how long its word counts, what its paths are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Signed, TargetFile

from hedgerow.errors import ConfigError
from hedgerow.labels import Selector, parse_selector
from hedgerow.topics import is_name
from hedgerow.trust.errors import BadMetadata, BadRepository

TOP: Final = ("root", "targets", "snapshot", "timestamp")
ONLINE: Final = ("snapshot", "timestamp")

EXPLANATIONS: Final[Mapping[str, str]] = {
    "root": "says whose keys count for the other roles, and for itself. Several people hold one key each; some of them "
    "together change it. Kept off every network.",
    "targets": "says which owner may sign which models. Kept off the network too, and used when owners come and go.",
    "owner": "signs the versions of its own models, and for which nodes each is. Held by those who make the models.",
    "snapshot": "says which files belong together, so that nobody mixes old with new. Held by the region's service.",
    "timestamp": "says every day that this is still the newest, so that nobody holds news back. Held by the region's "
    "service.",
}

LIFETIMES: Final[Mapping[str, timedelta]] = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    "owner": timedelta(days=365),
    "snapshot": timedelta(days=14),
    "timestamp": timedelta(days=7),
}
"""How long what a role signs counts. Snapshot and timestamp are signed anew every day while the region's service runs."""

REFRESH_EVERY: Final = timedelta(days=1)

SIGNED_AT: Final = "x-hedgerow-signed-at"
"""A field of signed metadata: Unix seconds; no earlier can it be where that is known."""

_NAME: Final = "x-hedgerow-name"


def named(key: Key, name: str) -> Key:
    """A key with a name for people to read; its id and what it signs are the same."""
    key.unrecognized_fields[_NAME] = name
    return key


def name_of(key: Key) -> str:
    """A key's name, or the beginning of its id."""
    name = key.unrecognized_fields.get(_NAME)
    return name if isinstance(name, str) and name else key.keyid[:8]


def lifetime(role: str) -> timedelta:
    """How long what a role signs counts."""
    return LIFETIMES.get(role, LIFETIMES["owner"])


def stamp(signed: Signed, role: str, now: float) -> None:
    """Let metadata begin to count now."""
    moment = datetime.fromtimestamp(int(now), UTC)
    signed.expires = moment + lifetime(role)
    signed.unrecognized_fields[SIGNED_AT] = int(now)


def signed_at(signed: Signed) -> float | None:
    """When it was signed, Unix seconds; None: it does not say."""
    value = signed.unrecognized_fields.get(SIGNED_AT)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else None


def target_path(name: str, version: str) -> str:
    """The target that a version's manifest is."""
    return f"{name}/{version}/manifest.json"


def patterns(models: Iterable[str]) -> list[str]:
    """The targets that an owner of these models may sign. Raises: BadRepository: one is neither a name nor a pattern."""
    for model in models:
        if not is_name(model.replace("*", "x")):
            raise BadRepository(
                f"{model!r} is no model's name", remedy="Use a name, or one with `*` in it, such as `vision-*`."
            )
    return sorted(f"{model}/*/manifest.json" for model in set(models))


def models_of(role: DelegatedRole) -> list[str]:
    """The models that a role may sign, as they were given."""
    return [pattern.partition("/")[0] for pattern in role.paths or ()]


def custom(selector: Selector) -> dict[str, Any]:
    """What is said of a target beside its digest."""
    return {"hedgerow": {"selector": str(selector)}}


def selector_of(target: TargetFile) -> Selector:
    """The nodes that a target is for; all, if it does not say.

    Raises: BadMetadata: it says something that is no selector.
    """
    said = target.custom
    ours = said.get("hedgerow", {}) if isinstance(said, dict) else {}
    text = ours.get("selector", "") if isinstance(ours, dict) else None
    try:
        if isinstance(text, str):
            return parse_selector(text)
    except ConfigError as error:
        raise BadMetadata(f"{target.path} does not say for which nodes it is: {error}") from error
    raise BadMetadata(f"{target.path} does not say for which nodes it is in a way that can be read")

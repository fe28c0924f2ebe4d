"""Translates refusals of tuf's client into errors for operators. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from securesystemslib.exceptions import StorageError
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Signed, Snapshot
from tuf.api.serialization import DeserializationError

from hedgerow.trust import errors
from hedgerow.trust.errors import TrustError
from hedgerow.trust.roles import TOP
from hedgerow.trust.updater import JudgedUpdater

_METADATA: Final = re.compile(r"metadata/(?:(?P<version>\d+)\.)?(?P<role>[^/]+)\.json")
_REFUSALS: Final = (RepositoryError, DownloadError, StorageError)
REFUSALS: Final[tuple[type[Exception], ...]] = _REFUSALS
"""What tuf's client raises when it refuses."""

_SERVES: Final = "; the old version keeps serving"


def explain(error: Exception, updater: JudgedUpdater) -> TrustError:
    """Return the `TrustError` for an exception of tuf's client."""
    path, data, limit = updater.fetcher.path, updater.fetcher.data, updater.fetcher.max_bytes
    place = _METADATA.fullmatch(path)
    role = place["role"] if place else ""
    kind: type[TrustError]
    match error:
        case ExpiredMetadataError():
            return _expired(updater, role, data)
        case UnsignedMetadataError():
            return _unsigned(updater, role, data)
        case BadVersionNumberError():
            kind, message = _bad_version(error, updater, role, data)
        case LengthOrHashMismatchError() if len(data) < limit and _length_is_signed(updater, role):
            kind, message = errors.TruncatedData, f"{path} has only {len(data):,} of {limit:,} signed bytes"
        case LengthOrHashMismatchError() if role:
            kind, message = errors.MixAndMatch, f"{path} does not belong to the other metadata"
        case LengthOrHashMismatchError():
            kind, message = errors.WrongContent, f"{path} is not what was signed"
        case DownloadLengthMismatchError():
            kind, message = errors.EndlessData, f"{path} exceeds its limit of {limit:,} bytes"
        case SlowRetrievalError():
            kind, message = errors.SlowData, f"{error}"
        case DownloadHTTPError():
            kind, message = errors.MissingMetadata, f"{path} is missing"
        case DeserializationError() if not data.rstrip().endswith(b"}"):
            kind, message = errors.TruncatedData, f"{path} is cut off after {len(data):,} bytes"
        case DeserializationError():
            kind, message = errors.BadMetadata, f"{path} cannot be read: {error}"
        case RepositoryError() if "missing info" in str(error):
            kind, message = errors.RollbackAttack, f"{path} omits a role it had before: {error}"
        case RepositoryError() if "not part of snapshot" in str(error):
            kind, message = errors.UnknownTarget, f"its owner has published nothing yet: {error}"
        case _:
            kind, message = errors.BadMetadata, f"{path}: {error}"
    refused = kind(f"Refused: {message}{_SERVES}")
    refused.received, refused.seconds = len(data), updater.fetcher.seconds
    return refused


def _length_is_signed(updater: JudgedUpdater, role: str) -> bool:
    """Whether the limit on the download is a signed length."""
    if not role:
        return True
    if role == "snapshot":
        return updater.timestamp.snapshot_meta.length is not None
    snapshot = updater.trusted("snapshot")
    meta = snapshot.meta.get(f"{role}.json") if isinstance(snapshot, Snapshot) else None
    return meta is not None and meta.length is not None


def _expired(updater: JudgedUpdater, role: str, data: bytes) -> TrustError:
    moment = updater.judged_at
    for name in ("root", "timestamp", "snapshot"):
        signed = updater.trusted(name)
        if signed is not None and signed.is_expired(moment):
            role, ends = name, signed.expires
            break
    else:
        ends = _signed(data).expires
    return errors.ExpiredMetadata(
        f"Refused: the {_named(role)} expired on {ends:%Y-%m-%d %H:%M} UTC, and it is {moment:%Y-%m-%d %H:%M}{_SERVES}",
        remedy="Sign it again: `hedgerow trust renew`. Or check whether this node's clock is ahead."
        if role not in ("snapshot", "timestamp")
        else None,
    )


def _unsigned(updater: JudgedUpdater, role: str, data: bytes) -> TrustError:
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    delegators = updater.delegators(role)
    if role == "root" and isinstance(metadata.signed, Root):
        delegators.append(metadata.signed)
    for delegator in delegators:
        found = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        if found.verified:
            continue
        known = metadata.signatures.keys() & {*found.signed, *found.unsigned}
        if not known and metadata.signatures:
            keys = ", ".join(sorted(key[:8] for key in metadata.signatures))
            return errors.UnknownSigningKey(
                f"Refused: the {_named(role)} is signed by keys that are not valid for it ({keys}){_SERVES}"
            )
        if len(known) > len(found.signed):
            bad = ", ".join(sorted(key[:8] for key in known - found.signed.keys()))
            return errors.BadSignature(
                f"Refused: a signature of the {_named(role)} does not match its content (key {bad}){_SERVES}"
            )
        return errors.TooFewSignatures(
            f"Refused: the {_named(role)} has {len(found.signed)} of {found.threshold} required signatures{_SERVES}"
        )
    return errors.BadSignature(f"Refused: the {_named(role)} is not correctly signed{_SERVES}")


def _bad_version(error: Exception, updater: JudgedUpdater, role: str, data: bytes) -> tuple[type[TrustError], str]:
    version = _signed(data).version
    if role == "root":
        return errors.BrokenRootChain, f"root {updater.root.version} is followed by one with version {version}"
    if role == "timestamp":
        known = updater.timestamp
        if version < known.version:
            return errors.RollbackAttack, f"timestamp {version} is older than {known.version}, which was seen"
        return (
            errors.RollbackAttack,
            f"timestamp {version} refers to a snapshot older than {known.snapshot_meta.version}",
        )
    if role == "snapshot" and version == updater.timestamp.snapshot_meta.version:
        return errors.RollbackAttack, f"snapshot {version} rolls a role back: {error}"
    return errors.MixAndMatch, f"{_named(role)} has version {version}, and other metadata refers to another version"


def _signed(data: bytes) -> Signed:
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    signed: Signed = metadata.signed
    return signed


def _named(role: str) -> str:
    return role if role in TOP else f"owner {role}"

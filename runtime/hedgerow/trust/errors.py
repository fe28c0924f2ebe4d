"""Errors of trust, one class per reason, so that events and counters can tell attacks from accidents.

A refusal changes nothing on the node: the old version keeps serving.
"""

from __future__ import annotations

from typing import ClassVar

from hedgerow.errors import HedgerowError


class TrustError(HedgerowError):
    """Something is not trusted, or the repository cannot do what was asked.

    Attributes:
        received: bytes of the refused document.
        seconds: time that it took to arrive.
    """

    code = "not-trusted"
    received = 0
    seconds = 0.0
    advice: ClassVar[str] = "Check the repository with `hedgerow trust status`."

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy or self.advice)


class UnknownSigningKey(TrustError):
    """Signed by keys that the role does not have."""

    code = "unknown-signing-key"
    advice = (
        "If the key is right, add it with `hedgerow trust rotate` or `trust add`; else find out who signed with it."
    )


class BadSignature(TrustError):
    """A known key's signature does not match the content, which was changed."""

    code = "bad-signature"
    advice = "It was changed after signing. Check the repository, and the path between it and this node."


class TooFewSignatures(TrustError):
    """Good signatures, but fewer than the role's threshold."""

    code = "too-few-signatures"
    advice = "More key holders must sign: `hedgerow trust sign`."


class ExpiredMetadata(TrustError):
    """Metadata that was valid has expired: newer metadata may be held back."""

    code = "expired-metadata"
    advice = "Check this node's clock. If it is right, run `hedgerow trust refresh`, and check that the region's service runs."


class RollbackAttack(TrustError):
    """Older than what this node has seen."""

    code = "rollback-attack"
    advice = (
        "Someone is replaying old metadata, or the repository was restored from a backup: see docs/operator/trust.md."
    )


class MixAndMatch(TrustError):
    """Parts that are each signed, but do not belong together."""

    code = "mix-and-match"
    advice = "The repository was probably copied while it changed: copy it again, metadata/timestamp.json last."


class EndlessData(TrustError):
    """More bytes than were signed, or than such a document may have."""

    code = "endless-data"
    advice = "The sender is broken or hostile: check the repository, and the path between it and this node."


class TruncatedData(TrustError):
    """Fewer bytes than were signed."""

    code = "truncated-data"
    advice = "The node retries. If it keeps failing, the repository's copy is damaged: publish again, or copy it again."


class SlowData(TrustError):
    """Bytes arrive too slowly."""

    code = "slow-data"
    advice = "The node retries. If the link is fine, check the sender: it is broken or hostile."


class WrongContent(TrustError):
    """The signed number of bytes, but different content."""

    code = "wrong-content"
    advice = "It was damaged or replaced in transit or in the repository: check both. The node retries."


class BadMetadata(TrustError):
    """Not metadata of The Update Framework, or of another role than its path says."""

    code = "bad-metadata"
    advice = "Check the file in the repository; restore it from a copy, or create it again with `hedgerow trust`."


class MissingMetadata(TrustError):
    """A required document is missing."""

    code = "missing-metadata"
    advice = "Check that the region uses the right repository, and that it is complete: `hedgerow trust status`."


class BrokenRootChain(TrustError):
    """A root that does not follow from the one this node has."""

    code = "broken-root-chain"
    advice = "Nodes follow every root: keep each metadata/N.root.json in the repository, from the first on."


class UnknownTarget(TrustError):
    """No authorised owner has signed this version of this model."""

    code = "unknown-target"
    advice = "Publish it: `hedgerow model publish BUNDLE --to REPOSITORY --key KEY`; see who owns it with `hedgerow trust status`."


class WrongDigest(TrustError):
    """The digest signed for this version is not the requested one."""

    code = "wrong-digest"
    advice = "A version is published once. Request the signed digest, or publish the other bundle as a new version."


class WrongVersion(TrustError):
    """The manifest is for another model or version than its path in the repository."""

    code = "wrong-version"
    advice = "The model's owner signed something else under that name: publish a new version."


class NotForThisNode(TrustError):
    """Signed, but for nodes with other labels."""

    code = "not-for-this-node"
    advice = "Choose other nodes, or publish it for these too: `hedgerow model publish BUNDLE --for SELECTOR`."


class StateUnwritable(TrustError):
    """The metadata seen so far cannot be stored; rollbacks would go unnoticed, so everything is refused."""

    code = "trust-state"
    advice = "Free disk space, or let this user write to `state_dir`."


class KeyUnusable(TrustError):
    """A signing key cannot be read or used."""

    code = "key-unusable"
    advice = "Check the file and its passphrase, or the token and its PIN."


class NotAllowed(TrustError):
    """The given keys lack the authority."""

    code = "not-allowed"
    advice = "`hedgerow trust status` shows which keys are needed."


class VersionPublished(TrustError):
    """That version is published with other content; a version never changes."""

    code = "version-published"
    advice = "Give the bundle a new version: `hedgerow model build … --version`."


class BadRepository(TrustError):
    """The repository does not exist, or cannot do what was asked."""

    code = "bad-repository"
    advice = "Name the repository's folder, or create one: `hedgerow trust init`."

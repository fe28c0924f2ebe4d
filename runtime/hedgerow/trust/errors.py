"""What is refused, and why: one class a reason, so that events and counters can tell attacks from accidents.

Every refusal leaves the node as it was: what served before serves on.
"""

from __future__ import annotations

from typing import ClassVar

from hedgerow.errors import HedgerowError


class TrustError(HedgerowError):
    """Something is not to be trusted, or the repository cannot be used as asked."""

    code = "not-trusted"
    advice: ClassVar[str] = "Look at the repository with `hedgerow trust status`."

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy or self.advice)


class UnknownSigningKey(TrustError):
    """Signed by keys that the role does not have."""

    code = "unknown-signing-key"
    advice = "If the key is right, let it count with `hedgerow trust rotate` or `trust add`; else find out who signed with it."


class BadSignature(TrustError):
    """A signature of a known key does not fit what it is said to sign: it was changed."""

    code = "bad-signature"
    advice = "It was changed after it was signed. Look at the repository and at what lies between it and this node."


class TooFewSignatures(TrustError):
    """Good signatures, but fewer than the role's threshold."""

    code = "too-few-signatures"
    advice = "Let further holders of keys sign: `hedgerow trust sign`."


class ExpiredMetadata(TrustError):
    """A statement was good once and is too old: somebody may be holding newer ones back."""

    code = "expired-metadata"
    advice = "Is this node's clock right? Else refresh the repository: `hedgerow trust refresh`, and see that the region runs."


class RollbackAttack(TrustError):
    """Older than what this node has seen."""

    code = "rollback-attack"
    advice = (
        "Somebody brings back old metadata, or the repository was restored from a backup: see docs/operator/trust.md."
    )


class MixAndMatch(TrustError):
    """Parts that are each signed but do not belong together."""

    code = "mix-and-match"
    advice = "Was the repository copied while it changed? Copy it again, metadata/timestamp.json last."


class EndlessData(TrustError):
    """More bytes come than are signed for, or than such a document may have."""

    code = "endless-data"
    advice = (
        "Whatever sends this is broken or hostile: look at the repository and at what lies between it and this node."
    )


class TruncatedData(TrustError):
    """Fewer bytes came than are signed for."""

    code = "truncated-data"
    advice = "It is tried again. If it stays so, the repository's copy is damaged: publish again or copy it anew."


class SlowData(TrustError):
    """Bytes come so slowly that it might never end."""

    code = "slow-data"
    advice = "It is tried again. If the link is fine, whatever sends this is broken or hostile."


class WrongContent(TrustError):
    """As many bytes as are signed for, but others."""

    code = "wrong-content"
    advice = "It was damaged or replaced on its way or in the repository: look there; it is tried again."


class BadMetadata(TrustError):
    """No metadata of The Update Framework, or of another kind than its place says."""

    code = "bad-metadata"
    advice = "Look at the file in the repository; restore it from a copy, or make it anew with `hedgerow trust`."


class MissingMetadata(TrustError):
    """A document that must be there is not."""

    code = "missing-metadata"
    advice = "Is the region told of the right repository, and is the repository whole? See `hedgerow trust status`."


class BrokenRootChain(TrustError):
    """A root that does not follow the one this node has."""

    code = "broken-root-chain"
    advice = "Nodes go from root to root: keep every metadata/N.root.json in the repository, from the first on."


class UnknownTarget(TrustError):
    """Nobody who may has signed this version of this model."""

    code = "unknown-target"
    advice = "Publish it: `hedgerow model publish BUNDLE --to REPOSITORY --key KEY`; see who owns it with `hedgerow trust status`."


class WrongDigest(TrustError):
    """The signed bundle of this version is another one than was asked for."""

    code = "wrong-digest"
    advice = (
        "A version is published once. Ask for the digest that is signed, or publish what was meant as a new version."
    )


class WrongVersion(TrustError):
    """The manifest says that it is another model, or another version of it, than its name in the repository."""

    code = "wrong-version"
    advice = "Whoever owns the model signed something else by that name: publish a new version."


class NotForThisNode(TrustError):
    """Signed, but for nodes with other labels."""

    code = "not-for-this-node"
    advice = "Choose other nodes, or publish it for these too: `hedgerow model publish BUNDLE --for SELECTOR`."


class StateUnwritable(TrustError):
    """What this node has seen cannot be kept, and without that rollbacks would go unnoticed: nothing is believed."""

    code = "trust-state"
    advice = "Make room on the disk, or let this user write into `state_dir`."


class KeyUnusable(TrustError):
    """A signing key cannot be read or used."""

    code = "key-unusable"
    advice = "Give the right file and passphrase, or the right token and PIN."


class NotAllowed(TrustError):
    """The keys given may not do that."""

    code = "not-allowed"
    advice = "See whose keys are needed with `hedgerow trust status`."


class VersionPublished(TrustError):
    """That version is published, with other content; a version never changes."""

    code = "version-published"
    advice = "Give the bundle a new version: `hedgerow model build … --version`."


class BadRepository(TrustError):
    """The repository is not there, or cannot be used as asked."""

    code = "bad-repository"
    advice = "Name the repository's folder, or make one: `hedgerow trust init`."

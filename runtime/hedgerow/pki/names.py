"""Names of identities, and the authorities that sign them.

AUTHORITY/broker    a broker; its certificate carries host names and addresses
SITE/NODE           a node or a sensor
SITE                the bridge of a site's broker to the region, so the region signs it
ABOVE/bridge/NAME   the bridge of a region's broker to the one above, whose authority signs it
NAME@AUTHORITY      a service or a person
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from hedgerow.errors import HedgerowError
from hedgerow.topics import is_name

REGION: Final = "region"
"""The region's authority; no site may have this name."""

_LONGEST: Final = 64
"""Largest length of a common name in characters (RFC 5280, ub-common-name)."""

_FORMS: Final = (
    "Write SITE/NODE, AUTHORITY/broker, SITE or ABOVE/bridge/NAME (a bridge), or NAME@AUTHORITY; names are of "
    "`A-Z a-z 0-9 . _ -`."
)


class PkiError(HedgerowError):
    """A certificate cannot be issued, renewed, revoked or read."""

    code = "pki"


class IdentityKind(StrEnum):
    """Kind of identity."""

    BROKER = "broker"
    BRIDGE = "bridge"
    NODE = "node"
    SERVICE = "service"


class Identity(NamedTuple):
    """A machine, service or person that can have a certificate.

    Attributes:
        kind: decides what the certificate may be used for.
        authority: its signer.
        name: its folder under the authority's `issued/`.
    """

    kind: IdentityKind
    authority: str
    name: str

    @property
    def user(self) -> str:
        """The common name, which is the user name on a broker. A broker's own common name is its host name."""
        if self.kind is IdentityKind.BRIDGE:
            return self.name
        return f"{self.name}@{self.authority}" if self.kind is IdentityKind.SERVICE else f"{self.authority}/{self.name}"

    def __str__(self) -> str:
        bridge_above = self.kind is IdentityKind.BRIDGE and self.authority != REGION
        return f"{self.authority}/{self.kind}/{self.name}" if bridge_above else self.user


def parse(text: str) -> Identity:
    """Parse an identity.

    Raises: PkiError: it is invalid, or too long for a certificate.
    """
    if len(text) > _LONGEST:
        raise PkiError(
            f"{text!r} has {len(text)} characters, but a certificate's name may have {_LONGEST}",
            remedy="Give the site or the node a shorter name.",
        )
    left, at, authority = text.partition("@")
    if at:
        found = Identity(IdentityKind.SERVICE, authority, left)
    else:
        left, slash, right = text.partition("/")
        if not slash:
            found = Identity(IdentityKind.BRIDGE, REGION, left)
        elif right == IdentityKind.BROKER:
            found = Identity(IdentityKind.BROKER, left, right)
        elif right.startswith(f"{IdentityKind.BRIDGE}/"):
            found = Identity(IdentityKind.BRIDGE, left, right.partition("/")[2])
        else:
            found = Identity(IdentityKind.NODE, left, right)
    if not (is_name(found.authority) and is_name(found.name)):
        raise PkiError(f"{text!r} is not a valid certificate name", remedy=_FORMS)
    if found.authority == REGION and (
        found.kind is IdentityKind.NODE or found == (IdentityKind.BRIDGE, REGION, REGION)
    ):
        raise PkiError(f"{text!r}: `{REGION}` is the region's authority, not a site", remedy=_FORMS)
    if found.kind is not IdentityKind.BROKER and found.name == IdentityKind.BROKER:
        raise PkiError(f"{text!r}: the folder `broker` is reserved for the broker", remedy="Choose another name.")
    return found


def of(authority: str, folder: str, user: str, *, broker: bool) -> Identity:
    """Return the identity of a certificate.

    Args:
        authority: its signer.
        folder: its folder under the authority's `issued/`.
        user: its common name.
        broker: whether it is for hosts.
    Raises: PkiError: the common name is not an identity.
    """
    if broker:
        return Identity(IdentityKind.BROKER, authority, str(IdentityKind.BROKER))
    return Identity(IdentityKind.BRIDGE, authority, user) if user == folder else parse(user)


def check_site(name: str) -> str:
    """Check a site's name and return it. Raises: PkiError: it is invalid."""
    if not is_name(name) or name == REGION:
        raise PkiError(
            f"{name!r} is not a valid site name",
            remedy=f"Use 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit, and not `{REGION}`.",
        )
    return name

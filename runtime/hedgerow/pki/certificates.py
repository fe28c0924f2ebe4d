"""Certificates and revocation lists. No files, no clock: the caller passes the time.

Everything is backdated by a day, so that a gateway whose clock is somewhat behind the issuer's does not consider its
certificate not yet valid.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hedgerow.pki.files import Key
from hedgerow.pki.names import IdentityKind, PkiError

BACK_DATED: Final = timedelta(days=1)
ROOT_LIFE: Final = timedelta(days=3650)
AUTHORITY_LIFE: Final = timedelta(days=730)
USUAL_LIFE: Final = timedelta(days=30)
OPERATOR_LIFE: Final = timedelta(hours=12)
"""A working day: whoever steals an operator's certificate has it no longer. Operators are people, who can ask again."""
LIST_LIFE: Final = USUAL_LIFE
"""Of an authority's revocation list, as of a certificate: both must be renewed and reach their machines in this time."""

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS: Final = re.compile(rf"(?:\*\.|\.)?{_LABEL}(?:\.{_LABEL})*\.?")
_WILDCARD: Final = re.compile(rf"\*(?:\.{_LABEL}){{2,}}")

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for certificates and requests that a stranger made; most are no ValueErrors."""

REASONS: Final = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "superseded": x509.ReasonFlags.superseded,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
}
"""Reasons to revoke a certificate (RFC 5280 §5.3.1)."""


def usual_life(role: str | None) -> timedelta:
    """Return how long a certificate is valid unless its issuer says otherwise, by what it is for."""
    return OPERATOR_LIFE if role == "operator" else USUAL_LIFE


def new_key() -> Key:
    """Create a private key: ECDSA on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def root(region: str, key: Key, now: datetime) -> x509.Certificate:
    """Create the root: self-signed, and above authorities only."""
    subject = _subject(region, "root", f"Hedgerow root of {region}"[:64])
    made = _begin(subject, subject, key.public_key(), key.public_key(), now, now + ROOT_LIFE)
    return _as_authority(made, path_length=1).sign(key, hashes.SHA256())


def authority(
    name: str,
    public: ec.EllipticCurvePublicKey,
    signer: x509.Certificate,
    signing: Key,
    now: datetime,
    names: Sequence[str] = (),
) -> x509.Certificate:
    """Create an authority, which signs certificates but no further authorities.

    Args:
        names: domains and networks in which it may certify brokers; empty: any.
    """
    subject = _subject(region_of(signer), "authority", name)
    ends = min(now + AUTHORITY_LIFE, signer.not_valid_after_utc)
    made = _as_authority(_begin(subject, signer.subject, public, signing.public_key(), now, ends), path_length=0)
    if names:
        made = made.add_extension(_constraints(names), critical=True)
    return made.sign(signing, hashes.SHA256())


def reissue(
    old: x509.Certificate, signer: x509.Certificate, signing: Key, now: datetime, names: Sequence[str] = ()
) -> x509.Certificate:
    """Create an authority's next certificate, with a new serial and life; the rest is unchanged.

    Args:
        names: domains and networks in which it may certify brokers from now on; empty: unchanged.
    """
    made = x509.CertificateBuilder().subject_name(old.subject).issuer_name(signer.subject).public_key(_public(old))
    made = (
        made.serial_number(x509.random_serial_number())
        .not_valid_before(now - BACK_DATED)
        .not_valid_after(min(now + AUTHORITY_LIFE, signer.not_valid_after_utc))
    )
    for extension in old.extensions:
        if not (names and isinstance(extension.value, x509.NameConstraints)):
            made = made.add_extension(extension.value, critical=extension.critical)
    if names:
        made = made.add_extension(_constraints(names), critical=True)
    return made.sign(signing, hashes.SHA256())


def leaf(
    kind: IdentityKind,
    user: str,
    role: str,
    public: ec.EllipticCurvePublicKey,
    signer: x509.Certificate,
    signing: Key,
    now: datetime,
    ends: datetime,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Create a certificate: for servers only if it is a broker's, otherwise for clients only.

    Args:
        role: what it is, for people to read.
        hosts: names and addresses of a broker.
    """
    made = _begin(_subject(region_of(signer), role, user), signer.subject, public, signing.public_key(), now, ends)
    use = ExtendedKeyUsageOID.SERVER_AUTH if kind is IdentityKind.BROKER else ExtendedKeyUsageOID.CLIENT_AUTH
    made = (
        made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    )
    if hosts:
        made = made.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return made.sign(signing, hashes.SHA256())


def revocation_list(
    signer: x509.Certificate,
    signing: Key,
    revoked: Iterable[tuple[int, datetime, str]],
    number: int,
    dated: datetime,
    ends: datetime,
) -> x509.CertificateRevocationList:
    """Create the list of revoked certificates: serial, time, reason.

    A broker refuses every client once its list has expired. Otherwise whoever keeps new lists from a broker could use a
    revoked certificate there for as long as the authority lives.

    Args:
        ends: when it expires; with the signer if that is earlier.
    """
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.subject)
        .last_update(dated)
        .next_update(min(ends, signer.not_valid_after_utc))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    for serial, at, why in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
        if why != "unspecified":  # RFC 5280 §5.3.1: left out instead
            entry = entry.add_extension(x509.CRLReason(REASONS[why]), critical=False)
        made = made.add_revoked_certificate(entry.build())
    return made.sign(signing, hashes.SHA256())


def pem(*items: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """Encode as PEM, concatenated."""
    return b"".join(item.public_bytes(Encoding.PEM) for item in items)


def common_name(certificate: x509.Certificate) -> str:
    """Return the common name, "" if there is none: the user name on a broker."""
    return _attribute(certificate, NameOID.COMMON_NAME)


def role_of(certificate: x509.Certificate) -> str:
    """Return the role, "" if not stated: `node`, `broker`, `operator`…"""
    return _attribute(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)


def region_of(certificate: x509.Certificate) -> str:
    """Return the region, "" if not stated."""
    return _attribute(certificate, NameOID.ORGANIZATION_NAME)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may sign certificates."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def is_for(certificate: x509.Certificate, use: x509.ObjectIdentifier) -> bool:
    """Whether it may be used for something (RFC 5280 §4.2.1.12)."""
    try:
        return use in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the certificate's host names and addresses."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def permits(authority: x509.Certificate, host: str) -> bool:
    """Whether an authority may certify a broker at a host name or address (RFC 5280 §4.2.1.10)."""
    try:
        constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return True
    permitted = [one.value for one in constraints.permitted_subtrees or ()]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        domains = [one for one in permitted if isinstance(one, str)]
        return any(f".{host}".lower().endswith(f".{one.lstrip('.')}".lower()) for one in domains)
    return any(address in one for one in permitted if isinstance(one, ipaddress.IPv4Network | ipaddress.IPv6Network))


def _public(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PkiError("Not an ECDSA certificate", remedy="Use certificates that `hedgerow pki` issued.")
    return key


def _attribute(certificate: x509.Certificate, which: x509.ObjectIdentifier) -> str:
    found = certificate.subject.get_attributes_for_oid(which)
    return str(found[0].value) if found else ""


def _subject(region: str, role: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, region),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signing: ec.EllipticCurvePublicKey,
    now: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACK_DATED)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing), critical=False)
    )


def _as_authority(made: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    return made.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True).add_extension(
        _usage(signs_certificates=True), critical=True
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return _dns(text)


def _dns(text: str) -> x509.DNSName:
    if len(text) > 253 or _DNS.fullmatch(text) is None:
        raise PkiError(f"{text!r} is not a host name", remedy="Give DNS names or IP addresses.")
    return x509.DNSName(text)


def check_wildcards(hosts: Sequence[str], *, allowed: bool) -> None:
    """Check host names for a broker's certificate.

    Args:
        allowed: whether a wildcard may stand for the first label of a name with at least two more.
    Raises: PkiError: a name has a wildcard, or one that covers too much.
    """
    for host in hosts:
        if "*" in host and (not allowed or _WILDCARD.fullmatch(host) is None):
            raise PkiError(
                f"{host!r} covers names of other machines: whoever has this certificate can be any of them to every client",
                remedy="Name each host of the broker: --host broker.hall-2.lan --host 10.7.0.2."
                if not allowed
                else "Put `*` only in place of the first part, before two others: `*.hall-2.lan`.",
            )


def _constraints(names: Sequence[str]) -> x509.NameConstraints:
    permitted: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_network("127.0.0.0/8"))]
    for name in names:
        try:
            permitted.append(x509.IPAddress(ipaddress.ip_network(name)))
        except ValueError:
            check_wildcards([name], allowed=False)  # here it would match nothing: `lan` stands for all below it
            permitted.append(_dns(name))
    return x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None)

"""Checks of certificate files that a node or a broker uses, for `doctor` and for a node's health.

Certificates need not come from `hedgerow pki`; keys of any kind are supported.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from hedgerow.pki import certificates, files
from hedgerow.pki.names import PkiError


class Trouble(NamedTuple):
    """A problem with certificate files.

    Attributes:
        fatal: whether connections fail or a secret is exposed now, rather than later.
        detail: what is wrong.
        remedy: what to do.
    """

    fatal: bool
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Life:
    """Validity period of a certificate.

    Attributes:
        name: its common name.
        serial: distinguishes it from its successor.
    """

    name: str
    serial: str
    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, path: Path) -> Life:
        """Read it from the first certificate of a file. Raises: PkiError: it cannot be read."""
        one = files.read_certificates(path)[0]
        return cls(
            certificates.common_name(one), f"{one.serial_number:x}", one.not_valid_before_utc, one.not_valid_after_utc
        )

    def state(self, now: datetime) -> Literal["early", "good", "ending", "ended"]:
        """Return the state; `ending`: less than a quarter is left, so the renewal has failed."""
        if now < self.begins:
            return "early"
        if now >= self.ends:
            return "ended"
        return "ending" if self.ends - now < (self.ends - self.begins) / 4 else "good"

    def trouble(self, now: datetime) -> Trouble | None:
        """Return the problem at a point in time; None if there is none."""
        state = self.state(now)
        if state == "early":
            return Trouble(
                True,
                f"the clock may be wrong: it says {now:%Y-%m-%d %H:%M} UTC, but the certificate of {self.name} is valid from "
                f"{self.begins:%Y-%m-%d %H:%M}",
                "Set the clock of this machine, or of the machine that issued the certificate; `timedatectl` shows the time.",
            )
        if state == "ended":
            return Trouble(
                True,
                f"the certificate of {self.name} expired on {self.ends:%Y-%m-%d %H:%M} UTC",
                "Install a new one: `hedgerow pki renew`. If it expired long ago, check the clock.",
            )
        if state == "ending":
            left = self.ends - now
            remaining = f"{left.days} days" if left.days > 1 else f"{left.total_seconds() / 3600:.0f} hours"
            return Trouble(
                False,
                f"the certificate of {self.name} expires in {remaining} and has not been renewed",
                "Check that the timer of `hedgerow pki renew` runs, and that its files reach this machine.",
            )
        return None


def examine(
    now: datetime,
    cert_file: Path | None,
    key_file: Path | None,
    ca_file: Path | None = None,
    crl_file: Path | None = None,
    user: str | None = None,
) -> Iterator[Trouble]:
    """Check the files of one identity.

    Args:
        user: the expected common name; None: any.
    """
    try:
        chain = files.read_certificates(cert_file) if cert_file is not None else []
        trusted = files.read_certificates(ca_file) if ca_file is not None else []
        lists = x509_lists(crl_file) if crl_file is not None else []
    except PkiError as error:
        yield Trouble(True, str(error), error.remedy)
        return
    if cert_file is not None and chain:
        key_file = key_file or cert_file
        yield from _key(key_file, chain[0])
        if (trouble := Life.of(cert_file).trouble(now)) is not None:
            yield trouble
        if user is not None and (called := certificates.common_name(chain[0])) != user:
            yield Trouble(
                True,
                f"{cert_file} is the certificate of {called!r}, but this node is {user!r}",
                f"Use the files of {user}, or correct `node: {{site, name}}`.",
            )
        if trusted:
            yield from _chain(chain, trusted, lists, now)
    if crl_file is not None:
        listed = {one.issuer for one in lists}
        for authority in trusted:
            if authority.subject not in listed:
                yield Trouble(
                    True,
                    f"{crl_file} has no list of {authority.subject.rfc4514_string()}",
                    "Use it and `ca_file` from the same folder: every client of that authority is refused.",
                )
    if crl_file is not None:
        yield from list_troubles(now, crl_file, lists)


def list_troubles(now: datetime, path: Path, lists: Sequence[x509.CertificateRevocationList]) -> Iterator[Trouble]:
    """Yield revocation lists that have expired, or will soon: less than a quarter of their life is left, at most 30 days.

    Args:
        path: their file, for the message.
    """
    remedy = (
        "Check that the timer of `hedgerow pki renew` or `pki apply` runs, and that `trust.crl` reaches this machine and the "
        "broker: with an expired list a broker refuses every client."
    )
    for one in lists:
        ends, begins = one.next_update_utc, one.last_update_utc
        if ends is None or begins is None:
            continue
        issuer = one.issuer.rfc4514_string()
        if now >= ends:
            yield Trouble(True, f"{path}: the revocation list of {issuer} expired on {ends:%Y-%m-%d %H:%M} UTC", remedy)
        elif ends - now < min((ends - begins) / 4, timedelta(days=30)):
            yield Trouble(
                False,
                f"{path}: the revocation list of {issuer} expires on {ends:%Y-%m-%d %H:%M} UTC and has not been renewed",
                remedy,
            )


def lists_beside(now: datetime, cert_file: Path | None, crl_file: Path | None = None) -> list[Trouble]:
    """Return what is wrong with the revocation lists of a client, or next to its certificate.

    `hedgerow pki` puts the lists of an authority into the folder of everyone it certifies, so its broker most likely has the
    same ones.
    """
    path = crl_file or (cert_file.with_name("trust.crl") if cert_file is not None else None)
    if path is None or not path.exists():
        return []
    try:
        return list(list_troubles(now, path, x509_lists(path)))
    except PkiError as error:
        return [Trouble(False, str(error), error.remedy)]


def x509_lists(path: Path) -> list[x509.CertificateRevocationList]:
    """Read the revocation lists of a PEM file. Raises: PkiError: it cannot be read."""
    end = b"-----END X509 CRL-----"
    data = files.read(path)
    try:
        return [x509.load_pem_x509_crl(part + end) for part in data.split(end)[:-1]]
    except ValueError as error:
        raise PkiError(f"{path} holds no revocation lists: {error}", remedy="Give a PEM file.") from error


def _key(key_file: Path, certificate: x509.Certificate) -> Iterator[Trouble]:
    try:
        mode = stat.S_IMODE(key_file.stat().st_mode)
        data = files.read(key_file)
    except OSError as error:
        yield Trouble(True, f"{key_file}: {error.strerror}", "Name the private key of the certificate as `key_file`.")
        return
    except PkiError as error:
        yield Trouble(True, str(error), "Make it readable by the node's user only.")
        return
    if mode & 0o007:
        yield Trouble(
            True, f"{key_file} is readable by every user on this machine ({mode:04o})", f"`chmod 600 {key_file}`"
        )
    if b"BEGIN PKCS#11 PROVIDER URI" in data:
        return  # on a token: a connection shows whether it can be used
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        yield Trouble(True, f"{key_file} holds no usable private key: {error}", "Give a PEM file.")
        return
    if key.public_key() != certificate.public_key():
        yield Trouble(True, f"{key_file} is not the key of the certificate", "Use both from the same folder.")


def _chain(
    chain: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    lists: Sequence[x509.CertificateRevocationList],
    now: datetime,
) -> Iterator[Trouble]:
    one = chain[0]
    for _ in range(8):
        if one.subject == one.issuer:
            if one not in trusted:
                yield Trouble(True, "its root is not in `ca_file`", "Use both from the same folder.")
            return
        signer = next((other for other in (*chain[1:], *trusted) if _signed(one, other)), None)
        if signer is None:
            yield Trouble(
                True,
                f"no certificate in `cert_file` or `ca_file` has signed {one.subject.rfc4514_string()}",
                "Append the intermediate to the certificate, and use `ca_file` from the same folder.",
            )
            return
        for known in lists:
            if (
                known.issuer == one.issuer
                and known.get_revoked_certificate_by_serial_number(one.serial_number) is not None
            ):
                yield Trouble(
                    True, f"{one.subject.rfc4514_string()} is revoked", "Issue a new one: `hedgerow pki issue`."
                )
        if not signer.not_valid_before_utc <= now < signer.not_valid_after_utc and one is chain[0]:
            yield Trouble(
                True,
                f"the authority {signer.subject.rfc4514_string()} is not valid now; it expires on {signer.not_valid_after_utc:%Y-%m-%d}",
                "Run `hedgerow pki renew --authority NAME` where the root's key is; or the clock is wrong.",
            )
        one = signer


def _signed(one: x509.Certificate, other: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(other)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True

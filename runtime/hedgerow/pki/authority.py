"""A signer's folder: its certificate, key, issued certificates and revocation list.

`issued.json` lists every certificate that has not expired, since a renewed one has a predecessor that is still valid:
revoking an identity means all its certificates. The revocation list is built from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from cryptography import x509

from hedgerow.pki import certificates, files
from hedgerow.pki.files import Key
from hedgerow.pki.names import PkiError


class Signer:
    """The root, or an authority.

    Args:
        name: "root", or the authority's name.
        certificate, key, revocations, ledger: paths of its files.
    """

    def __init__(self, name: str, certificate: Path, key: Path, revocations: Path, ledger: Path) -> None:
        self.name = name
        self.certificate_file = certificate
        self.key_file = key
        self.revocations_file = revocations
        self._ledger_file = ledger

    @property
    def exists(self) -> bool:
        """Whether it has been created."""
        return self.certificate_file.exists()

    def certificate(self) -> x509.Certificate:
        """Its certificate."""
        return files.read_certificates(self.certificate_file)[0]

    def key(self, passphrase: bytes | None = None) -> Key:
        """Its private key. Raises: PkiError: the key is not on this machine, or the passphrase is wrong."""
        if not self.key_file.exists():
            raise PkiError(
                f"The key of {self.name} is not on this machine: {self.key_file}",
                remedy=f"Run this where the key of {self.name} is kept"
                + (", or put it back for the moment." if self.name == "root" else "."),
            )
        key = files.read_key(self.key_file, passphrase)
        if key.public_key() != self.certificate().public_key():
            raise PkiError(
                f"{self.key_file} is not the key of {self.certificate_file}",
                remedy="Restore the two files that belong together.",
            )
        return key

    def check_clock(self, now: datetime) -> None:
        """Raises: PkiError: by this machine's clock the signer's certificate has expired, or is not valid yet."""
        certificate = self.certificate()
        if now < certificate.not_valid_before_utc + certificates.BACK_DATED:
            raise PkiError(
                f"The clock says {now:%Y-%m-%d %H:%M} UTC, but the certificate of {self.name} was issued later",
                remedy="Set this machine's clock first: certificates with wrong dates would be refused.",
            )
        if now >= certificate.not_valid_after_utc:
            raise PkiError(
                f"The certificate of {self.name} expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
                remedy=f"Run `hedgerow pki renew --authority {self.name}` where the root's key is. Or the clock is wrong.",
            )

    def issued(self) -> list[dict[str, Any]]:
        """Unexpired certificates it has issued, oldest first: `name`, `serial`, `ends`, `life_s`, and if revoked `revoked`, `reason`."""
        if not self._ledger_file.exists():
            return []
        try:
            entries: list[dict[str, Any]] = orjson.loads(files.read(self._ledger_file))
        except orjson.JSONDecodeError as error:
            raise PkiError(
                f"{self._ledger_file} is damaged: {error}", remedy="Restore it from a backup of the folder."
            ) from error
        return entries

    def record(self, name: str, certificate: x509.Certificate, now: datetime, life: timedelta) -> None:
        """Record a certificate before it is handed out.

        Args:
            life: the requested life; the certificate's is shorter if the authority expires first.
        """
        entry = {
            "name": name,
            "serial": f"{certificate.serial_number:x}",
            "ends": certificate.not_valid_after_utc.timestamp(),
            "life_s": life.total_seconds(),
        }
        self._save([*self.issued(), entry], now)

    def life_of(self, serial: str) -> timedelta | None:
        """Return the requested life of a certificate; None if it is no longer recorded."""
        return next((timedelta(seconds=one["life_s"]) for one in self.issued() if one["serial"] == serial), None)

    def revoke(self, names: Sequence[str], reason: str, now: datetime, key: Key) -> int:
        """Revoke all valid certificates of some names. Returns: how many."""
        entries, listed = self.issued(), self.revoked()
        # One that is recorded as revoked, but not listed: the call that revoked it was killed in between.
        hit = [entry for entry in entries if entry["name"] in names and int(entry["serial"], 16) not in listed]
        for entry in hit:
            if "revoked" not in entry:
                entry |= {"revoked": now.timestamp(), "reason": reason}
        self._save(entries, now)
        self.write_revocations(key, now)
        return len(hit)

    def revoked(self) -> dict[int, str]:
        """Return the serials and reasons in its revocation list file, which is what brokers read."""
        if (known := self.revocations()) is None:
            return {}
        words = {flag: word for word, flag in certificates.REASONS.items()}
        found = {}
        for entry in known:
            try:
                reason = words.get(entry.extensions.get_extension_for_class(x509.CRLReason).value.reason, "unspecified")
            except x509.ExtensionNotFound:
                reason = "unspecified"
            found[entry.serial_number] = reason
        return found

    def revocations(self) -> x509.CertificateRevocationList | None:
        """Return its revocation list; None if there is no file."""
        if not self.revocations_file.exists():
            return None
        try:
            return x509.load_pem_x509_crl(files.read(self.revocations_file))
        except ValueError as error:
            raise PkiError(
                f"{self.revocations_file} is not a revocation list: {error}",
                remedy="Remove it; the next `renew` or `revoke` writes it again.",
            ) from error

    def list_is_due(self, now: datetime) -> bool:
        """Whether its revocation list should be renewed: a third of its life has passed, or it is from before they had one.

        A list that ends with its signer is due only if a new one would end earlier: none can end later.
        """
        known = self.revocations()
        if known is None or known.last_update_utc is None or known.next_update_utc is None:
            return True
        own = self.certificate()
        life = _life_of_list(known, own)
        if life is None:
            return now + certificates.LIST_LIFE < own.not_valid_after_utc
        return known.next_update_utc - now < life * 2 / 3

    def list_life(self) -> timedelta:
        """How long its revocation lists are to be valid: as the last one; the usual time if that ends with its signer."""
        known = self.revocations()
        return (_life_of_list(known, self.certificate()) if known is not None else None) or certificates.LIST_LIFE

    def write_revocations(self, key: Key, now: datetime, life: timedelta | None = None) -> None:
        """Write the revocation list, with the next number.

        Args:
            life: how long it is valid; None: `list_life`. The root's lives as long as the root, whose key is not at hand
                to renew it.
        """
        before = self.revocations()
        number, dated = 1, now - certificates.BACK_DATED
        if before is not None:
            # Of two lists, OpenSSL uses the later one; a broker that has reloaded holds both.
            dated = max(dated, (before.last_update_utc or dated) + timedelta(seconds=1))
            number += before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        revoked = [
            (int(entry["serial"], 16), datetime.fromtimestamp(entry["revoked"], now.tzinfo), entry["reason"])
            for entry in self.issued()
            if "revoked" in entry
        ]
        own = self.certificate()
        ends = own.not_valid_after_utc if self.name == "root" else now + (life or self.list_life())
        made = certificates.revocation_list(own, key, revoked, number, dated, ends)
        files.write(self.revocations_file, certificates.pem(made))

    def _save(self, entries: list[dict[str, Any]], now: datetime) -> None:
        # Keep expired certificates for another day: a clock that is behind may still accept them.
        past = (now - certificates.BACK_DATED).timestamp()
        kept = [entry for entry in entries if entry["ends"] > past]
        files.write(self._ledger_file, orjson.dumps(kept, option=orjson.OPT_INDENT_2), private=True)


def _life_of_list(known: x509.CertificateRevocationList, signer: x509.Certificate) -> timedelta | None:
    """Return how long a revocation list was to be valid; None if as long as its signer."""
    begins, ends = known.last_update_utc, known.next_update_utc
    if begins is None or ends is None or ends >= signer.not_valid_after_utc:
        return None
    # In whole hours: a list that replaces another within a second is dated a second later.
    return timedelta(hours=round((ends - begins - certificates.BACK_DATED) / timedelta(hours=1))) or timedelta(hours=1)

"""A signer's folder: its certificate, its key, what it has issued, and its revocation list.

`issued.json` remembers every certificate that has not ended, since a renewed one has a predecessor that still counts:
revoking somebody means all of theirs. The revocation list is made from it.
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
        name: as people know it.
        certificate, key, revocations, ledger: where its files are.
    """

    def __init__(self, name: str, certificate: Path, key: Path, revocations: Path, ledger: Path) -> None:
        self.name = name
        self.certificate_file = certificate
        self.key_file = key
        self.revocations_file = revocations
        self._ledger_file = ledger

    @property
    def exists(self) -> bool:
        """Whether it has been made."""
        return self.certificate_file.exists()

    def certificate(self) -> x509.Certificate:
        """Its certificate."""
        return files.read_certificates(self.certificate_file)[0]

    def key(self, passphrase: bytes | None = None) -> Key:
        """Its private key. Raises: PkiError: it is not on this machine, or has another passphrase."""
        if not self.key_file.exists():
            raise PkiError(
                f"The key of {self.name} is not here: {self.key_file}",
                remedy=f"Do this where the key of {self.name} is kept"
                + (", or put it back for as long as this takes." if self.name == "root" else "."),
            )
        key = files.read_key(self.key_file, passphrase)
        if key.public_key() != self.certificate().public_key():
            raise PkiError(
                f"{self.key_file} is not the key of {self.certificate_file}",
                remedy="Put the two files back that belong together.",
            )
        return key

    def check_clock(self, now: datetime) -> None:
        """Raises: PkiError: by this machine's clock the signer has ended, or is not made yet."""
        certificate = self.certificate()
        if now < certificate.not_valid_before_utc + certificates.BACK_DATED:
            raise PkiError(
                f"The clock says {now:%Y-%m-%d %H:%M} UTC, and the certificate of {self.name} was made later than that",
                remedy="Set this machine's clock first: nobody would take what is dated wrong.",
            )
        if now >= certificate.not_valid_after_utc:
            raise PkiError(
                f"The certificate of {self.name} ended on {certificate.not_valid_after_utc:%Y-%m-%d}",
                remedy=f"Where the root's key is: `hedgerow pki renew --authority {self.name}`. Or the clock is wrong.",
            )

    def issued(self) -> list[dict[str, Any]]:
        """What it has issued and what has not ended, oldest first: `name`, `serial`, `ends`, `life_s`, perhaps `revoked` and `reason`."""
        if not self._ledger_file.exists():
            return []
        try:
            entries: list[dict[str, Any]] = orjson.loads(files.read(self._ledger_file))
        except orjson.JSONDecodeError as error:
            raise PkiError(
                f"{self._ledger_file} is damaged: {error}", remedy="Put it back from a backup of the folder."
            ) from error
        return entries

    def enter(self, name: str, certificate: x509.Certificate, now: datetime, life: timedelta) -> None:
        """Remember a certificate, before anybody gets it.

        Args:
            life: what was asked for; the certificate's may be cut where the authority ends.
        """
        entry = {
            "name": name,
            "serial": f"{certificate.serial_number:x}",
            "ends": certificate.not_valid_after_utc.timestamp(),
            "life_s": life.total_seconds(),
        }
        self._keep([*self.issued(), entry], now)

    def life_of(self, serial: str) -> timedelta | None:
        """The life that a certificate was asked for with; None if it is not known any more."""
        return next((timedelta(seconds=one["life_s"]) for one in self.issued() if one["serial"] == serial), None)

    def revoke(self, names: Sequence[str], reason: str, now: datetime, key: Key) -> int:
        """Revoke all certificates of some names that still count. Returns: how many."""
        entries = self.issued()
        hit = [entry for entry in entries if entry["name"] in names and "revoked" not in entry]
        for entry in hit:
            entry |= {"revoked": now.timestamp(), "reason": reason}
        self._keep(entries, now)
        self.write_revocations(key, now)
        return len(hit)

    def revoked(self) -> dict[int, str]:
        """Serials that its revocation list holds, and why; as the file says, which is what counts on a broker."""
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
        """Its revocation list; None if there is no file."""
        if not self.revocations_file.exists():
            return None
        try:
            return x509.load_pem_x509_crl(files.read(self.revocations_file))
        except ValueError as error:
            raise PkiError(
                f"{self.revocations_file} is no revocation list: {error}",
                remedy="Remove it; the next `renew` or `revoke` writes it anew.",
            ) from error

    def write_revocations(self, key: Key, now: datetime) -> None:
        """Write the revocation list, with the next number."""
        before = self.revocations()
        number, dated = 1, now - certificates.BACK_DATED
        if before is not None:
            # Of two lists, OpenSSL takes the one dated later; a broker that was told to reload has both.
            dated = max(dated, (before.last_update_utc or dated) + timedelta(seconds=1))
            number += before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        revoked = [
            (int(entry["serial"], 16), datetime.fromtimestamp(entry["revoked"], now.tzinfo), entry["reason"])
            for entry in self.issued()
            if "revoked" in entry
        ]
        made = certificates.revocation_list(self.certificate(), key, revoked, number, dated)
        files.write(self.revocations_file, certificates.pem(made))

    def _keep(self, entries: list[dict[str, Any]], now: datetime) -> None:
        # What has ended a while ago counts nowhere; a clock that is behind may still take it for a day.
        past = (now - certificates.BACK_DATED).timestamp()
        kept = [entry for entry in entries if entry["ends"] > past]
        files.write(self._ledger_file, orjson.dumps(kept, option=orjson.OPT_INDENT_2), private=True)

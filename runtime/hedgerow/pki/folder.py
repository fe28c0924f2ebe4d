"""The folder of all authorities and certificates, and its operations.

    root.crt root.key root.crl       the root; keep its key off every networked machine
    AUTHORITY/ca.crt ca.key crl.pem  a site's authority, or the region's
    AUTHORITY/issued/NAME/           a machine's files: tls.crt tls.key trust.crt trust.crl
                                     tls.csr in place of tls.key: the machine made the key, and keeps it

Rules:
- The root's key is needed only to create, renew or revoke an authority.
- An authority's folder works alone on the site's machine, next to root.crt, root.crl and whatever it has of the others.
- Every change holds a lock, and each file is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hedgerow import disk
from hedgerow.pki import certificates, files, names
from hedgerow.pki.authority import Signer
from hedgerow.pki.entry import CertificateEntry, Renewal
from hedgerow.pki.names import Identity, IdentityKind, PkiError
from hedgerow.topics import is_name

Passphrase = Callable[[], bytes | None]

_REQUEST: Final = "tls.csr"
_REVOKED: Final = "revoked.crt"
"""The request of a machine that keeps its key, in place of `tls.key`."""


class Pki:
    """The authorities and certificates of a region, in a folder.

    Args:
        folder: where they are or will be.
        clock: returns the time, with a time zone.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        self.folder = folder
        self._clock = clock
        self.root = Signer(
            "root", folder / "root.crt", folder / "root.key", folder / "root.crl", folder / "root.issued.json"
        )

    def now(self) -> datetime:
        """Return the time in whole seconds, as certificates have it."""
        return self._clock().replace(microsecond=0)

    def authority(self, name: str) -> Signer:
        """Return an authority, whether it exists or not."""
        home = self.folder / name
        return Signer(name, home / "ca.crt", home / "ca.key", home / "crl.pem", home / "issued.json")

    def authorities(self) -> list[Signer]:
        """Return the authorities known here, with or without their key."""
        return [self.authority(path.parent.name) for path in sorted(self.folder.glob("*/ca.crt"))]

    def check_region(self, region: str) -> None:
        """Raises: PkiError: the name is invalid, or the folder belongs to another region."""
        if not is_name(region):
            raise PkiError(
                f"{region!r} is not a valid region name",
                remedy="Use 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.",
            )
        if self.root.exists and (there := certificates.region_of(self.root.certificate())) != region:
            raise PkiError(
                f"{self.folder} belongs to the region {there}, not {region}",
                remedy="Name another --folder: each region has its own root.",
            )

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Return those authorities that do not exist yet."""
        return [name for name in dict.fromkeys(wanted) if not self.authority(name).exists]

    def init(
        self,
        region: str,
        sites: Sequence[str] = (),
        passphrase: Passphrase = lambda: None,
        hosts: Sequence[str] | Mapping[str, Sequence[str]] = (),
    ) -> list[str]:
        """Create the root, the region's authority and those of sites, unless they exist.

        Args:
            sites: names of the other authorities, for sites and the like.
            passphrase: of the root's key; called only if the key is created or used.
            hosts: domains and networks of the new sites' brokers, for all or by site; empty: any.
        Returns: the names of what was created.
        """
        now, made = self.now(), []
        wanted = [names.REGION, *(names.check_site(site) for site in sites)]
        self.check_region(region)
        with files.locked(self.folder):
            secret = passphrase() if not self.root.exists or self.missing(wanted) else None
            if not self.root.exists:
                key = certificates.new_key()
                files.write_key(self.root.key_file, key, secret)
                files.write(self.root.certificate_file, certificates.pem(certificates.root(region, key, now)))
                self.root.write_revocations(key, now)
                made.append("root")
            if missing := self.missing(wanted):
                self.root.check_clock(now)
                signing = self.root.key(secret)
                for name in missing:
                    own = hosts.get(name, ()) if isinstance(hosts, Mapping) else hosts
                    self._make_authority(name, signing, now, () if name == names.REGION else own)
                    made.append(name)
            self._refresh()
        return made

    def renew_lists(self, life: timedelta | None = None, *, dry_run: bool = False) -> list[str]:
        """Renew the revocation lists of authorities whose key is here, once a third of their life has passed.

        Args:
            life: how long they are valid from now on; given, all are renewed. None: as long as before.
            dry_run: only return the names.
        Returns: names of the authorities.
        """
        now, due = self.now(), []
        for signer in self.authorities():
            if signer.key_file.exists() and (life is not None or signer.list_is_due(now)):
                with suppress(PkiError):  # `renew` and `issue` report a wrong clock and an expired authority
                    signer.check_clock(now)
                    due.append(signer)
        if due and not dry_run:
            with files.locked(self.folder):
                for signer in due:
                    signer.write_revocations(signer.key(), now, life)
                self._refresh()
        return [signer.name for signer in due]

    def issue(
        self,
        who: Identity,
        life: timedelta,
        *,
        role: str | None = None,
        hosts: Sequence[str] = (),
        allow_wildcard: bool = False,
    ) -> CertificateEntry:
        """Issue a certificate with a new key.

        Args:
            life: how long it is valid; shorter if the authority expires first.
            role: what it is, for people to read; by default its kind.
            hosts: names and addresses of a broker.
            allow_wildcard: whether one may begin with `*.`.
        Raises: PkiError: there is a valid one, or the authority cannot sign here.
        """
        if (who.kind is IdentityKind.BROKER) != bool(hosts):
            raise PkiError(
                f"{who}: {'a broker needs' if who.kind is IdentityKind.BROKER else 'only a broker has'} host names",
                remedy="Name the addresses clients use: --host broker.site.lan --host 10.7.0.2."
                if who.kind is IdentityKind.BROKER
                else "Leave --host out.",
            )
        certificates.check_wildcards(hosts, allowed=allow_wildcard)
        if role is not None and not is_name(role):
            raise PkiError(
                f"{role!r} is not a valid role name",
                remedy="Use 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.",
            )
        with files.locked(self.folder):
            entry = self.find(who)
            if entry is not None and entry.revoked is None:
                self._refresh([entry.folder])  # the call that issued it may have been killed before it did
                raise PkiError(
                    f"{who} has a certificate until {entry.ends:%Y-%m-%d %H:%M} UTC: {entry.folder}",
                    remedy=f"`hedgerow pki renew {who}` issues the next one; to start over, `revoke` it first.",
                )
            (self.home(who) / _REQUEST).unlink(missing_ok=True)  # of a former machine
            return self._sign(who, role or who.kind, life, hosts, certificates.new_key())

    def certify(self, who: Identity, csr: x509.CertificateSigningRequest, life: timedelta) -> CertificateEntry:
        """Issue a certificate for a key that a machine made and keeps. For the same key: renew it if it is due, else return it.

        Args:
            csr: only its key counts.
            life: how long it is valid; shorter if the authority expires first.
        Raises: PkiError: there is a valid one for another key, or the authority cannot sign here.
        """
        key = csr.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise PkiError("Not an ECDSA key", remedy="Let `hedgerow enrol` make the key.")
        with files.locked(self.folder):
            entry = self.find(who)
            if entry is not None and entry.revoked is None:
                if files.read_certificates(entry.folder / "tls.crt")[0].public_key() != key:
                    raise PkiError(
                        f"{who} has a certificate for another key until {entry.ends:%Y-%m-%d %H:%M} UTC",
                        remedy=f"If that machine is gone: `hedgerow pki revoke {who}`; else choose another place.",
                    )
                if entry.ends - self.now() >= self._life(who, entry) / 3:
                    self._refresh([entry.folder])  # the call that issued it may have been killed before it did
                    return entry
            home = self.home(who)
            files.make_folder(home, private=True)
            files.write(home / _REQUEST, csr.public_bytes(serialization.Encoding.PEM), sync_folder=False)
            for former in ("tls.key", _REVOKED):
                (home / former).unlink(missing_ok=True)  # of a former machine
            return self._sign(who, who.kind, life, (), key)

    def renew(
        self, chosen: Sequence[Identity] = (), within: timedelta | None = None, *, new_key: bool = False
    ) -> Renewal:
        """Renew certificates, each for its requested life. A failure does not stop the others.

        Args:
            chosen: identities; empty: all that an authority here can sign and that expire soon.
            within: only those that expire sooner than this; None: all chosen ones, or without a choice those with less
                than a third of their life left.
            new_key: create a new private key too.
        """
        renewed: list[CertificateEntry] = []
        failed: list[PkiError] = []
        with files.locked(self.folder):
            for home in [self.home(who) for who in chosen] or list(self._ours()):
                try:
                    if (entry := self._renew(home, within, new_key=new_key, named=bool(chosen))) is not None:
                        renewed.append(entry)
                except PkiError as error:
                    failed.append(error)
            self._refresh()
        return Renewal(renewed, failed)

    def _renew(self, home: Path, within: timedelta | None, *, new_key: bool, named: bool) -> CertificateEntry | None:
        if not (home / "tls.crt").exists():
            raise PkiError(f"There is no certificate in {home}", remedy="`hedgerow pki issue` issues one.")
        entry = self.entry(home)
        if entry.revoked is not None:
            if not named:
                return None
            raise PkiError(
                f"{entry.name} was revoked: {entry.revoked}",
                remedy=f"To give it a new key and certificate: `hedgerow pki issue {entry.name}`.",
            )
        who, key, now = names.parse(entry.name), _key_of(home), self.now()
        life = self._life(who, entry)
        asked = named and within is None
        if not (asked or key is None or entry.ends - now < (life / 3 if within is None else within)):
            return None
        if new_key and isinstance(key, ec.EllipticCurvePublicKey):
            raise PkiError(
                f"{entry.name} keeps its own key",
                remedy="Let it make another: `hedgerow enrol` there, with a new claim.",
            )
        if new_key or key is None:
            key = certificates.new_key()
        return self._sign(who, entry.role, life, entry.hosts, key)

    def check_hosts(self, authority: str, hosts: Sequence[str]) -> None:
        """Raises: PkiError: an authority may not certify a broker at these hosts."""
        issuer = self._known(authority).certificate()
        if forbidden := [host for host in hosts if not certificates.permits(issuer, host)]:
            raise PkiError(
                f"The authority {authority} may not certify a broker at {', '.join(forbidden)}",
                remedy=f"If its broker has moved: `hedgerow pki renew --authority {authority}"
                f"{''.join(f' --host {host}' for host in hosts)}`, where the root's key is.",
            )

    def is_due(self, who: Identity) -> bool:
        """Whether `renew` would renew an identity's certificate: less than a third of its life is left, or its key is lost."""
        entry = self.find(who)
        if entry is None or entry.revoked is not None:
            return False
        return _key_of(entry.folder) is None or entry.ends - self.now() < self._life(who, entry) / 3

    def amend(self, who: Identity, role: str, hosts: Sequence[str]) -> CertificateEntry:
        """Issue a certificate for the same key with another role or hosts, for the requested life; a new operator's is short.

        Raises: PkiError: there is none to replace, or the authority cannot sign here.
        """
        with files.locked(self.folder):
            entry = self.find(who)
            if entry is None or entry.revoked is not None:
                raise PkiError(f"{who} has no valid certificate", remedy=f"`hedgerow pki issue {who}` issues one.")
            key = _key_of(entry.folder) or certificates.new_key()
            life = self._life(who, entry)
            if role == "operator" != entry.role:  # what was requested was not for an operator
                life = min(life, certificates.usual_life(role))
            return self._sign(who, role, life, hosts, key)

    def _life(self, who: Identity, entry: CertificateEntry) -> timedelta:
        """Return the requested life of a certificate."""
        known = self._known(who.authority).life_of(entry.serial)
        return entry.ends - entry.begins - certificates.BACK_DATED if known is None else known

    def renew_authority(
        self, name: str, passphrase: Passphrase = lambda: None, hosts: Sequence[str] = ()
    ) -> CertificateEntry:
        """Issue a new certificate for an authority's key: certificates it has issued stay valid.

        Args:
            hosts: domains and networks of its brokers from now on; empty: unchanged.
        """
        now = self.now()
        with files.locked(self.folder):
            signer = self._known(name)
            self.root.check_clock(now)
            old, list_life = signer.certificate(), signer.list_life()
            signing = self.root.key(passphrase())
            made = certificates.reissue(old, self.root.certificate(), signing, now, hosts)
            self.root.record(name, made, now, certificates.AUTHORITY_LIFE)
            files.write(signer.certificate_file, certificates.pem(made))
            if signer.key_file.exists():
                signer.write_revocations(signer.key(), now, list_life)
            self._refresh()
            return self._authority_entry(signer)

    def revoke(self, who: Identity, reason: str) -> int:
        """Revoke all valid certificates of an identity. Returns: how many."""
        now = self.now()
        with files.locked(self.folder):
            signer, home = self._known(who.authority), self.home(who)
            if (home / _REQUEST).exists() and (home / "tls.crt").exists():
                files.write(home / _REVOKED, files.read(home / "tls.crt"))
            count = signer.revoke([who.name], reason, now, signer.key())
            self._refresh()  # also if there was none: the call that revoked it may have been killed before it did
        if not count:
            raise PkiError(f"{who} has no valid certificate", remedy="`hedgerow pki show` lists all certificates.")
        return count

    def complete(self) -> None:
        """Update authorities and revocation lists in every identity's files: a call that was killed may not have."""
        with files.locked(self.folder):
            self._refresh()

    def was_revoked(self, who: Identity, key: ec.EllipticCurvePublicKey) -> bool:
        """Whether the last certificate for a key that a machine keeps was revoked, however long ago: the authority's list forgets it."""
        file = self.home(who) / _REVOKED
        return file.exists() and files.read_certificates(file)[0].public_key() == key

    def revoke_authority(self, name: str, reason: str, passphrase: Passphrase = lambda: None) -> int:
        """Revoke an authority, and with it everything it has issued. Returns: how many certificates it had itself."""
        now = self.now()
        with files.locked(self.folder):
            self._known(name)
            count = self.root.revoke([name], reason, now, self.root.key(passphrase()))
            self._refresh()
        return count

    def show(self) -> Iterator[CertificateEntry]:
        """Yield every certificate: the root, then each authority and what it has issued."""
        for signer in self.signers():
            yield signer
            if signer.kind == "authority":
                yield from map(self.entry, self.homes(signer.name))

    def signers(self) -> Iterator[CertificateEntry]:
        """Yield the certificates of the root and of all authorities known here."""
        yield CertificateEntry.of("root", "root", self.root.certificate(), self.folder, {})
        yield from map(self._authority_entry, self.authorities())

    def find(self, who: Identity) -> CertificateEntry | None:
        """Return an identity's certificate; None if there is none. Raises: PkiError: it cannot be read, or is another's."""
        home = self.home(who)
        if not (home / "tls.crt").exists():
            return None
        entry = self.entry(home)
        if entry.name != str(who):
            raise PkiError(
                f"{home} belongs to {entry.name}", remedy="Names under one authority must differ: choose another."
            )
        return entry

    def entry(self, home: Path) -> CertificateEntry:
        """Return the certificate in a folder. Raises: PkiError: it cannot be read."""
        signer = self.authority(home.parent.parent.name)
        return CertificateEntry.of_identity(
            signer.name, files.read_certificates(home / "tls.crt")[0], home, signer.revoked()
        )

    def keeps_own_key(self, who: Identity) -> bool:
        """Whether an identity's last certificate is for a key that its machine made and keeps."""
        return (self.home(who) / _REQUEST).exists()

    def home(self, who: Identity) -> Path:
        """Return the folder of an identity's files."""
        return self.folder / who.authority / "issued" / who.name

    def homes(self, authority: str) -> list[Path]:
        """Return the folders of all identities that an authority has certified."""
        return sorted(path.parent for path in self.folder.glob(f"{authority}/issued/*/tls.crt"))

    def lists(self, authority: str) -> list[Path]:
        """Return the revocation lists to distribute when an authority revokes a certificate."""
        return sorted(self.folder.glob(f"{authority}/issued/*/trust.crl"))

    def trusted(self, authority: str) -> list[Path]:
        """Return the lists of trusted authorities to distribute, with the revocation lists, when this one was revoked."""
        return sorted(self.folder.glob(f"{authority}/issued/*/trust.crt"))

    def _known(self, name: str) -> Signer:
        signer = self.authority(name)
        if not signer.exists:
            there = ", ".join(one.name for one in self.authorities()) or "none"
            command = "init --site " + name if name != names.REGION else "init --region NAME"
            raise PkiError(
                f"There is no authority {name} in {self.folder}; there is {there}",
                remedy=f"Create it with `hedgerow pki {command}`, where the root's key is; or name the right --folder.",
            )
        return signer

    def _make_authority(self, name: str, signing: files.Key, now: datetime, hosts: Sequence[str]) -> None:
        signer, key = self.authority(name), certificates.new_key()
        files.make_folder(self.folder / name, private=True)
        made = certificates.authority(name, key.public_key(), self.root.certificate(), signing, now, hosts)
        self.root.record(name, made, now, certificates.AUTHORITY_LIFE)
        files.write_key(signer.key_file, key)
        files.write(signer.certificate_file, certificates.pem(made))
        signer.write_revocations(key, now)

    def _sign(
        self,
        who: Identity,
        role: str,
        life: timedelta,
        hosts: Sequence[str],
        key: files.Key | ec.EllipticCurvePublicKey,
    ) -> CertificateEntry:
        now, signer = self.now(), self._known(who.authority)
        signer.check_clock(now)
        issuer = signer.certificate()
        self.check_hosts(who.authority, hosts)
        ends = min(now + life, issuer.not_valid_after_utc)
        user = hosts[0] if who.kind is IdentityKind.BROKER else who.user
        public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
        made = certificates.leaf(who.kind, user, role, public, issuer, signer.key(), now, ends, hosts)
        signer.record(who.name, made, now, life)
        home = self.home(who)
        files.make_folder(home.parent, private=True)
        files.make_folder(home, private=True)
        if isinstance(key, ec.EllipticCurvePrivateKey) and (_key_of(home) != key or not (home / "tls.key").exists()):
            files.write_key(home / "tls.key", key)
        files.write(home / "tls.crt", certificates.pem(made, issuer), sync_folder=False)
        self._refresh([home])  # which syncs the folder
        return self.entry(home)

    def _refresh(self, homes: Sequence[Path] | None = None) -> None:
        """Update authorities and revocation lists in every identity's files; write only what changed.

        The files hold the root and the identity's own authority with its list, and no other: peers share one authority. The
        list keeps others out: Mosquitto needs the list of a client's issuer, and refuses the client without it;
        otherwise every authority below the root could certify any name everywhere. A revoked authority is left out,
        since Mosquitto never checks the root's list.
        """
        out = self.root.revoked()
        for home in homes or sorted(self.folder.glob("*/issued/*")):
            own = self.authority(home.parent.parent.name)
            issuer = own.certificate()
            known = [self.root] if issuer.serial_number in out else [self.root, own]
            lists = [found for signer in known if (found := signer.revocations()) is not None]
            changed = _write_if_changed(
                home / "trust.crt", certificates.pem(*(signer.certificate() for signer in known))
            )
            changed |= _write_if_changed(home / "trust.crl", certificates.pem(*lists))
            if (home / "tls.crt").exists():
                with suppress(PkiError):  # a damaged one must not keep a revocation from the others
                    leaf = files.read_certificates(home / "tls.crt")[0]
                    changed |= _write_if_changed(home / "tls.crt", certificates.pem(leaf, issuer))
            if changed or homes is not None:
                disk.sync(home)

    def _ours(self) -> Iterator[Path]:
        for signer in self.authorities():
            if signer.key_file.exists():
                yield from self.homes(signer.name)

    def _authority_entry(self, signer: Signer) -> CertificateEntry:
        return CertificateEntry.of(
            signer.name, "authority", signer.certificate(), self.folder / signer.name, self.root.revoked()
        )


def _key_of(home: Path) -> files.Key | ec.EllipticCurvePublicKey | None:
    """Return the key of a certificate, or of its machine, which keeps it, the public half; None if they do not match, because a
    renewal was interrupted between the two files.
    """
    if (home / _REQUEST).exists() and (home / "tls.crt").exists():
        public = files.read_certificates(home / "tls.crt")[0].public_key()
        return public if isinstance(public, ec.EllipticCurvePublicKey) else None
    if not ((home / "tls.key").exists() and (home / "tls.crt").exists()):
        return None
    key = files.read_key(home / "tls.key")
    return key if key.public_key() == files.read_certificates(home / "tls.crt")[0].public_key() else None


def _write_if_changed(path: Path, data: bytes) -> bool:
    """Write a file, without syncing its folder. Returns: whether it was changed."""
    if path.exists() and files.read(path) == data:
        return False
    files.write(path, data, sync_folder=False)
    return True

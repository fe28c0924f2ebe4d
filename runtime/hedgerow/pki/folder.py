"""The folder of an identity system, and what can be done with it.

    root.crt root.key root.crl       the root; its key belongs on no machine that is on a network
    AUTHORITY/ca.crt ca.key crl.pem  a site's authority, or the region's
    AUTHORITY/issued/NAME/           what a machine gets: tls.crt tls.key trust.crt trust.crl

Rules:
- The root's key is needed to make, renew or revoke an authority, and for nothing else.
- An authority's folder works by itself on the site's machine, beside root.crt, root.crl and what is known of the others.
- Every change is made under a lock, and each file is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from hedgerow.pki import certificates, files, names
from hedgerow.pki.authority import Signer
from hedgerow.pki.names import Identity, Kind, PkiError
from hedgerow.topics import is_name

Passphrase = Callable[[], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A certificate as `show` lists it.

    Attributes:
        name: who; of an authority its name, or "root".
        kind: "root", "authority", or what the identity is.
        role: as the certificate says.
        folder: where its files are.
        revoked: why it was revoked; None if it was not.
    """

    name: str
    kind: str
    role: str
    folder: Path
    serial: str
    begins: datetime
    ends: datetime
    hosts: list[str] = field(default_factory=list)
    revoked: str | None = None

    def is_short(self, now: datetime) -> bool:
        """Whether less than a quarter of its life is left: it should have been renewed."""
        return (self.ends - now) < (self.ends - self.begins) / 4


class Renewal(NamedTuple):
    """What a renewal came to.

    Attributes:
        renewed: the new certificates.
        failed: why others were not renewed.
    """

    renewed: list[Entry]
    failed: list[PkiError]


class Pki:
    """An identity system in a folder.

    Args:
        folder: where it is or shall be.
        clock: what time it is, with a time zone.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        self.folder = folder
        self._clock = clock
        self.root = Signer(
            "root", folder / "root.crt", folder / "root.key", folder / "root.crl", folder / "root.issued.json"
        )

    def authority(self, name: str) -> Signer:
        """An authority, made already or not."""
        home = self.folder / name
        return Signer(name, home / "ca.crt", home / "ca.key", home / "crl.pem", home / "issued.json")

    def authorities(self) -> list[Signer]:
        """Those known here, with their key or without."""
        return [self.authority(path.parent.name) for path in sorted(self.folder.glob("*/ca.crt"))]

    def init(
        self,
        region: str,
        sites: Sequence[str] = (),
        passphrase: Passphrase = lambda: None,
        hosts: Sequence[str] = (),
    ) -> list[str]:
        """Make the root, the region's authority and those of sites, as far as they are not there.

        Args:
            passphrase: of the root's key; asked for only if that is made or used.
            hosts: domains and networks that the brokers of the new sites are in; empty: any.
        Returns: what was made.
        """
        now, made = self._now(), []
        wanted = [names.REGION, *(names.check_site(site) for site in sites)]
        if not is_name(region):
            raise PkiError(f"{region!r} cannot be a region", remedy="Use 1 to 64 of `A-Z a-z 0-9 . _ -`.")
        with files.locked(self.folder):
            secret = passphrase() if not self.root.exists or self._missing(wanted) else None
            if not self.root.exists:
                key = certificates.new_key()
                files.write_key(self.root.key_file, key, secret)
                files.write(self.root.certificate_file, certificates.pem(certificates.root(region, key, now)))
                self.root.write_revocations(key, now)
                made.append("root")
            elif (there := certificates.region_of(self.root.certificate())) != region:
                raise PkiError(
                    f"{self.folder} belongs to the region {there}, not {region}",
                    remedy="Name another --folder: each region has a root of its own.",
                )
            if missing := self._missing(wanted):
                self.root.check_clock(now)
                signing = self.root.key(secret)
                for name in missing:
                    self._make_authority(name, signing, now, () if name == names.REGION else hosts)
                    made.append(name)
            self._refresh()
        return made

    def issue(self, who: Identity, life: timedelta, *, role: str | None = None, hosts: Sequence[str] = ()) -> Entry:
        """Issue a certificate with a new key.

        Args:
            life: how long it counts; cut where the authority itself ends.
            role: what it is, for people to read; by default its kind.
            hosts: names and addresses of a broker.
        Raises: PkiError: there is one that counts, or the authority cannot sign here.
        """
        if (who.kind is Kind.BROKER) != bool(hosts):
            raise PkiError(
                f"{who}: {'a broker needs' if who.kind is Kind.BROKER else 'only a broker has'} host names",
                remedy="Say how clients reach it: --host broker.site.lan --host 10.7.0.2."
                if who.kind is Kind.BROKER
                else "Leave --host out.",
            )
        if role is not None and not is_name(role):
            raise PkiError(f"{role!r} cannot be a role", remedy="Use 1 to 64 of `A-Z a-z 0-9 . _ -`.")
        with files.locked(self.folder):
            home = self._home(who)
            entry = self._entry(home) if (home / "tls.crt").exists() else None
            if entry is not None and entry.name != str(who):
                raise PkiError(
                    f"{home} belongs to {entry.name}", remedy="Names below one authority must differ: choose another."
                )
            if entry is not None and entry.revoked is None:
                raise PkiError(
                    f"{who} has a certificate until {entry.ends:%Y-%m-%d %H:%M} UTC: {home}",
                    remedy=f"`hedgerow pki renew {who}` makes the next one; to begin anew, `revoke` it first.",
                )
            return self._sign(who, role or who.kind, life, hosts, certificates.new_key())

    def renew(
        self, chosen: Sequence[Identity] = (), within: timedelta | None = None, *, new_key: bool = False
    ) -> Renewal:
        """Renew certificates, for as long again as they were made for. One that cannot be renewed holds up no other.

        Args:
            chosen: which; empty: all that an authority here can sign, as far as they end soon.
            within: only what ends sooner than this; None: all that are chosen, else what has less than a third left.
            new_key: make a new private key too.
        """
        renewed: list[Entry] = []
        failed: list[PkiError] = []
        with files.locked(self.folder):
            for home in [self._home(who) for who in chosen] or list(self._ours()):
                try:
                    if (entry := self._renew(home, within, new_key=new_key, named=bool(chosen))) is not None:
                        renewed.append(entry)
                except PkiError as error:
                    failed.append(error)
            self._refresh()
        return Renewal(renewed, failed)

    def _renew(self, home: Path, within: timedelta | None, *, new_key: bool, named: bool) -> Entry | None:
        if not (home / "tls.crt").exists():
            raise PkiError(f"There is no certificate in {home}", remedy="`hedgerow pki issue` makes one.")
        entry = self._entry(home)
        if entry.revoked is not None:
            if not named:
                return None
            raise PkiError(
                f"{entry.name} was revoked: {entry.revoked}",
                remedy=f"`hedgerow pki issue {entry.name}` makes a new key and certificate, if that is meant.",
            )
        who, key, now = names.parse(entry.name), _key_of(home), self._now()
        life = self._known(who.authority).life_of(entry.serial)
        if life is None:
            life = entry.ends - entry.begins - certificates.BACK_DATED
        asked = named and within is None
        if not (asked or key is None or entry.ends - now < (life / 3 if within is None else within)):
            return None
        if new_key or key is None:
            key = certificates.new_key()
        return self._sign(who, entry.role, life, entry.hosts, key)

    def renew_authority(self, name: str, passphrase: Passphrase = lambda: None) -> Entry:
        """Give an authority a new certificate for its old key: what it has issued goes on counting."""
        now = self._now()
        with files.locked(self.folder):
            signer = self._known(name)
            self.root.check_clock(now)
            old = signer.certificate()
            signing = self.root.key(passphrase())
            made = certificates.reissue(old, self.root.certificate(), signing, now)
            self.root.enter(name, made, now, certificates.AUTHORITY_LIFE)
            files.write(signer.certificate_file, certificates.pem(made))
            if signer.key_file.exists():
                signer.write_revocations(signer.key(), now)
            self._refresh()
            return self._authority_entry(signer)

    def revoke(self, who: Identity, reason: str) -> int:
        """Revoke all certificates of somebody that still count. Returns: how many."""
        now = self._now()
        with files.locked(self.folder):
            signer = self._known(who.authority)
            count = signer.revoke([who.name], reason, now, signer.key())
            if not count:
                raise PkiError(
                    f"{who} has no certificate that counts", remedy="`hedgerow pki show` lists what there is."
                )
            self._refresh()
        return count

    def revoke_authority(self, name: str, reason: str, passphrase: Passphrase = lambda: None) -> int:
        """Revoke an authority, and so all that it has issued. Returns: how many certificates of it."""
        now = self._now()
        with files.locked(self.folder):
            self._known(name)
            count = self.root.revoke([name], reason, now, self.root.key(passphrase()))
            self._refresh()
        return count

    def show(self) -> Iterator[Entry]:
        """Every certificate, the root first, then each authority with what it has issued."""
        yield _entry("root", "root", self.root.certificate(), self.folder, {})
        for signer in self.authorities():
            yield self._authority_entry(signer)
            for home in self._homes(signer):
                yield self._entry(home)

    def home(self, who: Identity) -> Path:
        """The folder of an identity's files."""
        return self._home(who)

    def lists(self, authority: str) -> list[Path]:
        """The revocation lists of those whom an authority has certified: to be distributed when it revokes one."""
        return sorted(self.folder.glob(f"{authority}/issued/*/trust.crl"))

    def _now(self) -> datetime:
        return self._clock().replace(microsecond=0)

    def _missing(self, wanted: Sequence[str]) -> list[str]:
        return [name for name in dict.fromkeys(wanted) if not self.authority(name).exists]

    def _known(self, name: str) -> Signer:
        signer = self.authority(name)
        if not signer.exists:
            there = ", ".join(one.name for one in self.authorities()) or "none"
            command = "init --site " + name if name != names.REGION else "init --region NAME"
            raise PkiError(
                f"There is no authority {name} in {self.folder}; there is {there}",
                remedy=f"`hedgerow pki {command}` makes it, where the root's key is; or name the right --folder.",
            )
        return signer

    def _make_authority(self, name: str, signing: files.Key, now: datetime, hosts: Sequence[str]) -> None:
        signer, key = self.authority(name), certificates.new_key()
        files.make_folder(self.folder / name, private=True)
        made = certificates.authority(name, key.public_key(), self.root.certificate(), signing, now, hosts)
        self.root.enter(name, made, now, certificates.AUTHORITY_LIFE)
        files.write_key(signer.key_file, key)
        files.write(signer.certificate_file, certificates.pem(made))
        signer.write_revocations(key, now)

    def _sign(self, who: Identity, role: str, life: timedelta, hosts: Sequence[str], key: files.Key) -> Entry:
        now, signer = self._now(), self._known(who.authority)
        signer.check_clock(now)
        issuer = signer.certificate()
        ends = min(now + life, issuer.not_valid_after_utc)
        user = hosts[0] if who.kind is Kind.BROKER else who.user
        made = certificates.leaf(who.kind, user, role, key.public_key(), issuer, signer.key(), now, ends, hosts)
        signer.enter(who.name, made, now, life)
        home = self._home(who)
        files.make_folder(home.parent, private=True)
        files.make_folder(home, private=True)
        if _key_of(home) != key or not (home / "tls.key").exists():
            files.write_key(home / "tls.key", key)
        files.write(home / "tls.crt", certificates.pem(made, issuer))
        self._refresh([home])
        return self._entry(home)

    def _refresh(self, homes: Sequence[Path] | None = None) -> None:
        """Let everybody's files say what is known here of authorities and revocations; write only what changes.

        They hold the root and the own authority with its list, and no other: who speaks to whom has one authority. The
        list is what keeps others out. Mosquitto looks for the list of who signed a client's certificate, and refuses a
        client for whom it finds none; without that, every authority below the root could certify any name everywhere.
        Of an authority that is revoked they hold nothing, since Mosquitto never looks at the root's list.
        """
        out = self.root.revoked()
        for home in homes or sorted(self.folder.glob("*/issued/*")):
            own = self.authority(home.parent.parent.name)
            issuer = own.certificate()
            known = [self.root] if issuer.serial_number in out else [self.root, own]
            lists = [found for signer in known if (found := signer.revocations()) is not None]
            _write_if_changed(home / "trust.crt", certificates.pem(*(signer.certificate() for signer in known)))
            _write_if_changed(home / "trust.crl", certificates.pem(*lists))
            if (home / "tls.crt").exists():
                with suppress(PkiError):  # one that is spoiled must not keep a revocation from everybody else
                    leaf = files.read_certificates(home / "tls.crt")[0]
                    _write_if_changed(home / "tls.crt", certificates.pem(leaf, issuer))

    def _home(self, who: Identity) -> Path:
        return self.folder / who.authority / "issued" / who.name

    def _homes(self, signer: Signer) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob(f"{signer.name}/issued/*/tls.crt"))

    def _ours(self) -> Iterator[Path]:
        for signer in self.authorities():
            if signer.key_file.exists():
                yield from self._homes(signer)

    def _entry(self, home: Path) -> Entry:
        certificate = files.read_certificates(home / "tls.crt")[0]
        signer = self.authority(home.parent.parent.name)
        user = certificates.common_name(certificate)
        broker = bool(certificates.hosts_of(certificate))
        name = f"{signer.name}/{Kind.BROKER}" if broker else user
        return _entry(name, names.parse(name).kind, certificate, home, signer.revoked())

    def _authority_entry(self, signer: Signer) -> Entry:
        return _entry(signer.name, "authority", signer.certificate(), self.folder / signer.name, self.root.revoked())


def _entry(name: str, kind: str, certificate: x509.Certificate, folder: Path, revoked: dict[int, str]) -> Entry:
    return Entry(
        name=name,
        kind=kind,
        role=certificates.role_of(certificate),
        folder=folder,
        serial=f"{certificate.serial_number:x}",
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        hosts=certificates.hosts_of(certificate),
        revoked=revoked.get(certificate.serial_number),
    )


def _key_of(home: Path) -> files.Key | None:
    """The key that goes with a certificate; None if it does not: an earlier renewal was cut off between the two files."""
    if not ((home / "tls.key").exists() and (home / "tls.crt").exists()):
        return None
    key = files.read_key(home / "tls.key")
    return key if key.public_key() == files.read_certificates(home / "tls.crt")[0].public_key() else None


def _write_if_changed(path: Path, data: bytes) -> None:
    if not path.exists() or files.read(path) != data:
        files.write(path, data)

"""The folder of a machine that enrols: its key, what it asks, and the files of the node that it becomes.

    tls/tls.key          the key: made here, never sent
    tls/root.crt         the region's root, from the claim
    enrolment.json       where it asks, and its client id
    grant.json           what it was granted
    tls/tls.crt, trust.crt, trust.crl, node.yaml and files that it names, state/

Rules:
- Each file is replaced as a whole. The grant is written first, node.yaml last: killed at any point, there is a whole node or none, and
  the next call goes on from the grant.
- Who writes holds a lock on `.lock`: a timer may renew while an operator enrols.
- The key is made once. A configuration that is there stays, since it may have been edited here, unless the node has another place now:
  then it is replaced; if it was edited, only its address and its broker are.
"""

from __future__ import annotations

import io
import secrets
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from hedgerow.config import NodeConfig
from hedgerow.configfile import BadConfigFile, Document, merge
from hedgerow.enrolment.claim import Claim
from hedgerow.enrolment.grant import BadGrant, NodeGrant, site_of, verify_grant
from hedgerow.enrolment.maker import MakerProof
from hedgerow.enrolment.request import CLIENT
from hedgerow.enrolment.token_keys import named_in
from hedgerow.errors import HedgerowError, first_problem
from hedgerow.pki import files
from hedgerow.pki.certificates import common_name
from hedgerow.pki.names import PkiError
from hedgerow.topics import Address

CONFIGURATION: Final = "node.yaml"
_OWN: Final = frozenset({"tls", "state", CONFIGURATION, "enrolment.json", "grant.json"})


class NotEnrolled(HedgerowError):
    """The folder does not fit what is asked of it."""

    code = "not-enrolled"


class Enrolment(BaseModel):
    """Where a machine asks.

    Attributes:
        client: its client id.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_: Literal["hedgerow.enrolment/1"] = Field("hedgerow.enrolment/1", alias="schema")
    region: str
    site: str
    broker: str
    client: str = Field(pattern=rf"^{CLIENT.pattern}$")


class _Granted(BaseModel):
    """What was granted last.

    Attributes:
        edited: whether the configuration that was there then had been edited here.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    grant: str
    signature: str
    edited: bool = False

    @property
    def body(self) -> NodeGrant:
        """What it says; verified when it was written."""
        return NodeGrant.model_validate_json(self.grant)

    @property
    def node(self) -> str:
        """REGION/SITE/NODE."""
        return self.body.node

    @property
    def region(self) -> str:
        """Its region."""
        return self.node.split("/")[0]


class EnrolmentFolder:
    """The folder of a machine that enrols.

    Args:
        path: where it is or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tls = path / "tls"
        self.key_file = self.tls / "tls.key"
        self.root_file = self.tls / "root.crt"
        self.configuration = path / CONFIGURATION
        self._enrolment_file = path / "enrolment.json"
        self._grant_file = path / "grant.json"

    def begin(self, claim: Claim | MakerProof | None, broker: str | None = None, site: str | None = None) -> Enrolment:
        """Prepare the folder for asking, or read what is prepared.

        Args:
            claim: what the machine asks with; None: it has asked before.
            broker: where to ask, if not where that says.
            site: where the machine is now, if it has asked elsewhere before.
        Raises:
            NotEnrolled: there is nothing to go on with, or the folder is another site's.
            PkiError: it cannot be written.
        """
        there = self._enrolment()
        if claim is None:
            if there is None or not self.root_file.exists() or not self.key_file.exists():
                raise NotEnrolled(
                    f"{self.path} has not begun to enrol",
                    remedy="Give the token of a claim, which `hedgerow claim create SITE` makes in the region, or --certificate.",
                )
            changes = {"broker": broker, "site": site}
            return there.model_copy(update={name: value for name, value in changes.items() if value is not None})
        same = (
            there is not None and (there.region, there.site) == (claim.region, claim.site) and self._root_is(claim.root)
        )
        if there is not None and not same and self._grant_file.exists():
            raise NotEnrolled(
                f"{self.path} is a node of {there.region}/{there.site}, and this asks for {claim.region}/{claim.site}",
                remedy="Use another folder: --state DIR.",
            )
        client = there.client if there is not None and same else secrets.token_hex(16)
        made = Enrolment(
            region=claim.region,
            site=claim.site,
            broker=broker or claim.broker,
            client=client,
            schema="hedgerow.enrolment/1",
        )
        files.make_folder(self.path, private=True)
        files.make_folder(self.tls, private=True)
        with self.locked():
            files.write(self.root_file, claim.root.public_bytes(Encoding.PEM))
            files.write(self._enrolment_file, made.model_dump_json(by_alias=True).encode(), private=True)
        return made

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder against another call that writes there; never held while a call waits for an answer."""
        return files.locked(self.path)

    def key_uri(self) -> str | None:
        """Return the URI of the key, if it is on a token."""
        try:
            text = self.key_file.read_text("ascii", errors="replace")
        except OSError:
            return None
        return named_in(text)

    def root(self) -> x509.Certificate:
        """Return the region's root. Raises: PkiError: it cannot be read."""
        return files.read_certificates(self.root_file)[0]

    def granted(self, key: ec.EllipticCurvePublicKey) -> NodeGrant | None:
        """Return what was granted to this key; None if nothing was.

        Raises: BadGrant: it is not for this key.
        """
        body = self._granted()
        return None if body is None else verify_grant(body.grant, body.signature, self.root(), key, site_of(body.grant))

    @property
    def complete(self) -> bool:
        """Whether the node's files are all there, and those of its last grant."""
        body = self._granted()
        if body is None or not (self.configuration.exists() and (self.tls / "tls.crt").exists()):
            return False
        own = files.read_certificates(self.tls / "tls.crt")[0]
        return f"{body.region}/{common_name(own)}" == body.node == self._configured_address()

    def install_granted(self, grant: NodeGrant) -> None:
        """Write the files of a node from `grant.json`: an earlier call was ended while it did."""
        body = self._granted()
        assert body is not None  # noqa: S101 - the caller has it
        with self.locked():
            self._write(grant, body)

    def install(self, grant: NodeGrant, text: str, signature: str) -> None:
        """Write the files of the node. Idempotent.

        Raises:
            BadGrant: its configuration is not valid, or not this node's; nothing was written.
            PkiError: a file cannot be written.
        """
        if own := sorted({path.split("/")[0] for path in grant.contents()} & _OWN):
            raise BadGrant(f"The grant would replace {own[0]}", remedy="Rename the file in the node's base file.")
        configured(grant, self.configuration)
        with self.locked():
            before = self._granted()
            if before is not None and before.grant == text and self.complete:
                return
            edited = False
            if self.configuration.exists():
                as_granted = None if before is None else configured(before.body, self.configuration)
                edited = self.configuration.read_text("utf-8") != as_granted
            body = _Granted(grant=text, signature=signature, edited=edited)
            files.write(self._grant_file, body.model_dump_json().encode())
            self._write(grant, body)

    def _write(self, grant: NodeGrant, body: _Granted) -> None:
        files.make_folder(self.path / "state", private=True)
        for path, content in grant.contents().items():
            files.make_folder((self.path / path).parent)
            files.write(self.path / path, content)
        files.write(self.tls / "trust.crt", grant.trust.encode())
        files.write(self.tls / "trust.crl", grant.revocations.encode())
        files.write(self.tls / "tls.crt", grant.certificate.encode())
        asks = self._enrolment()
        if asks is not None and asks.site != grant.site:
            moved = asks.model_copy(update={"site": grant.site, "broker": grant.broker or asks.broker})
            files.write(self._enrolment_file, moved.model_dump_json(by_alias=True).encode(), private=True)
        if self._configured_address() == grant.node:
            return  # it stays: it may have been edited here
        configuration = configured(grant, self.configuration)
        if self.configuration.exists() and body.edited:
            configuration = readdressed(self.configuration.read_text("utf-8"), configuration, self.configuration)
        files.write(self.configuration, configuration.encode(), private=True)

    def _configured_address(self) -> str | None:
        """Return the node that the configuration is of; None if there is none."""
        try:
            config = Document(self.configuration.read_text("utf-8"), self.configuration).as_a(NodeConfig, "config")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, BadConfigFile) as error:
            raise NotEnrolled(
                f"{self.configuration} cannot be read: {error}", remedy="Correct it; or remove it, and ask again."
            ) from error
        return str(config.node.address)

    def _granted(self) -> _Granted | None:
        try:
            return _Granted.model_validate_json(self._grant_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise BadGrant(f"{self._grant_file} cannot be read: {error}", remedy="Remove it, and ask again.") from error

    def _enrolment(self) -> Enrolment | None:
        try:
            return Enrolment.model_validate_json(self._enrolment_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            why = first_problem(error, "file") if isinstance(error, ValidationError) else str(error.strerror)
            raise NotEnrolled(
                f"{self._enrolment_file} cannot be read: {why}",
                remedy="Check its owner; or remove it, and ask with a new claim.",
            ) from error

    def _root_is(self, root: x509.Certificate) -> bool:
        with suppress(PkiError):
            return self.root() == root
        return False


def readdressed(text: str, granted: str, path: Path) -> str:
    """Return an edited configuration with the address and the broker of a granted one.

    Raises: BadGrant: it cannot be changed.
    """
    try:
        yaml = YAML(typ="rt", pure=True)
        document, other = yaml.load(text), YAML(typ="safe", pure=True).load(granted)
        node = {name: other["node"][name] for name in ("region", "site", "name")}
        merge(document, {"node": node, "broker": {"url": other["broker"]["url"]}})
        out = io.StringIO()
        yaml.width = 4096
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.dump(document, out)
        Document(out.getvalue(), path).as_a(NodeConfig, "config")
    except (BadConfigFile, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadGrant(
            f"{path} cannot be given its new address: {error}", remedy="Set `node` and `broker: {url}` there by hand."
        ) from error
    return out.getvalue()


def configured(grant: NodeGrant, path: Path) -> str:
    """Return the text of a node's configuration, with the paths of this folder and the granted labels.

    Args:
        path: where it will be.
    Raises: BadGrant: it is not valid, or another node's.
    """
    remedy = "Correct the base file and the topology, render and approve again."
    try:
        Document(grant.configuration, path)  # with limits and errors that YAML itself has not
        yaml = YAML(typ="rt", pure=True)
        document = yaml.load(grant.configuration)
        if not isinstance(document, dict):
            raise BadGrant("The configuration is empty", remedy=remedy)
        tls = {"ca_file": "tls/trust.crt", "cert_file": "tls/tls.crt", "key_file": "tls/tls.key"}
        node = {"state_dir": "state", "labels": {**(document.get("node") or {}).get("labels", {}), **grant.labels}}
        merge(document, {"broker": {"tls": tls}, "node": node})
        out = io.StringIO()
        yaml.width = 4096
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.dump(document, out)
        config = Document(out.getvalue(), path).as_a(NodeConfig, "config")
    except BadConfigFile as error:
        raise BadGrant(f"The configuration is not valid: {error}", remedy=remedy) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BadGrant(f"The configuration cannot be read: {error}", remedy=remedy) from error
    if str(Address(config.node.region, config.node.site, config.node.name)) != grant.node:
        raise BadGrant(f"The configuration is of {config.node.site}/{config.node.name}", remedy=remedy)
    return out.getvalue()

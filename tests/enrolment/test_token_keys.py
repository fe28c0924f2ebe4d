"""A key is made on a PKCS#11 token, signs there, and is refused where TLS could not use it."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.enrolment.world import World

from hedgerow.bus.connect import ClientOptions, tls_context
from hedgerow.configenv import unknown_variables
from hedgerow.enrolment.enrol import enrol
from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.enrolment.token_keys import TokenUnusable, named_in, open_key, reference, request_of
from hedgerow.errors import ConfigError
from hedgerow.pki import files, inspect
from hedgerow.pki.files import read_certificates

URI = "pkcs11:token=line%203+4;object=gate"


@pytest.fixture
def pin(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed: pip install 'hedgerow[pkcs11]'")
    monkeypatch.setenv("HEDGEROW_TOKEN_PIN", "1234")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, str(tmp_path / "region.db"), pki=tmp_path / "pki")
    yield made
    made.close()


@pytest.mark.usefixtures("pin")
def test_a_key_is_made_once_on_the_token_and_signs_there() -> None:
    key, again = open_key(URI), open_key(URI)

    assert key.public_key() == again.public_key()
    key.public_key().verify(key.sign(b"x", ec.ECDSA(hashes.SHA256())), b"x", ec.ECDSA(hashes.SHA256()))
    csr = x509.load_pem_x509_csr(request_of(key).encode())
    assert csr.is_signature_valid
    assert csr.public_key() == key.public_key()


@pytest.mark.usefixtures("pin")
async def test_a_key_that_tls_cannot_use_is_refused_before_the_machine_asks(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless told: then the certificate is for the key on the token, and the node's own refusal says what is missing."""
    world.connect(monkeypatch)
    folder = EnrolmentFolder(tmp_path / "node")
    with pytest.raises(ConfigError, match="could not connect with this key") as caught:
        await enrol(folder, world.claim(), machine={}, key_uri=URI)
    assert ssl.OPENSSL_VERSION in str(caught.value)
    assert "--accept-unusable-key" in caught.value.remedy
    assert world.machines() == []

    await enrol(folder, world.claim(), machine={}, key_uri=URI, unusable_key=True)

    tls = folder.tls
    assert read_certificates(tls / "tls.crt")[0].public_key() == open_key(URI).public_key()
    assert "PRIVATE" not in (tls / "tls.key").read_text()
    options = ClientOptions(url="mqtts://broker.lan", cert_file=tls / "tls.crt", key_file=tls / "tls.key")
    with pytest.raises(ConfigError, match=r"on a PKCS#11 token"):
        tls_context(options)
    await enrol(folder, None, machine={}, unusable_key=True)  # the key is remembered


def values(der: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each value in DER."""
    found = []
    while der:
        size, start = der[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(der[2:start], "big")
        found.append((der[0], der[start : start + size]))
        der = der[start + size :]
    return found


@pytest.mark.parametrize("query", ["", "?module-path=/usr/lib/x.so&pin-source=file:/etc/pin"])
@pytest.mark.parametrize("name", ["gate", "g" * 200])
def test_a_reference_is_what_openssls_provider_reads_and_keeps_the_whole_uri(query: str, name: str) -> None:
    """The provider refuses a URI with a query, and text that is not DER."""
    text = reference(f"pkcs11:token=t;object={name}{query}").decode()
    der = base64.b64decode("".join(text.splitlines()[1:-2]))
    (whole,) = values(der)
    what, uri = values(whole[1])

    assert whole[0] == 0x30
    assert what == (0x1A, b"PKCS#11 Provider URI v1.0")
    assert uri == (0x0C, f"pkcs11:token=t;object={name};type=private".encode())
    assert named_in(text) == f"pkcs11:token=t;object={name}{query}"
    assert named_in("-----BEGIN PRIVATE KEY-----") is None


def test_the_variable_with_the_pin_is_no_setting_of_a_node() -> None:
    assert list(unknown_variables(["HEDGEROW_TOKEN_PIN"])) == []


def test_doctor_takes_a_key_on_a_token_for_one(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("node")
    (tmp_path / "tls.crt").write_bytes(certificate.cert_chain_pems[0].bytes())
    files.write(tmp_path / "tls.key", reference(URI), private=True)
    found = [one.detail for one in inspect.examine(datetime.now(UTC), tmp_path / "tls.crt", tmp_path / "tls.key")]

    assert not [detail for detail in found if "key" in detail]


@pytest.mark.usefixtures("pin")
def test_a_token_that_is_not_there_or_refuses_the_pin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenUnusable):
        open_key("pkcs11:token=another;object=gate")
    monkeypatch.delenv("HEDGEROW_TOKEN_PIN")
    with pytest.raises(ConfigError, match="needs a PIN"):
        open_key("pkcs11:token=line%203+4;object=another")


@pytest.mark.parametrize("uri", ["pkcs11:", "pkcs11:token=x", "pkcs11:object=y", "file:x", "pkcs11:token=;object="])
def test_a_uri_that_names_no_key_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="names no key on a token"):
        open_key(uri)

"""TLS keys on a token: used where OpenSSL has a provider for them, otherwise refused with the reason."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
import trustme

from hedgerow.bus.connect import ClientOptions, tls_context
from hedgerow.errors import ConfigError

URI = b"pkcs11:token=line%203;object=node;type=private"
PEM = b"-----BEGIN PKCS#11 PROVIDER URI-----\n" + base64.b64encode(URI) + b"\n-----END PKCS#11 PROVIDER URI-----\n"


def options(folder: Path, key_file: Path) -> ClientOptions:
    certificate = trustme.CA().issue_cert("node")
    (folder / "tls.crt").write_bytes(certificate.cert_chain_pems[0].bytes())
    (folder / "tls.key").write_bytes(certificate.private_key_pem.bytes())
    return ClientOptions(url="mqtts://broker:8883", cert_file=folder / "tls.crt", key_file=key_file)


@pytest.mark.parametrize("content", [PEM, URI], ids=["pem", "uri"])
def test_a_key_on_a_token_is_refused_with_the_reason(tmp_path: Path, content: bytes) -> None:
    """This test's OpenSSL has no such provider."""
    (tmp_path / "token.pem").write_bytes(content)

    with pytest.raises(ConfigError, match=r"on a PKCS#11 token.*has no provider") as caught:
        tls_context(options(tmp_path, tmp_path / "token.pem"))
    assert ssl.OPENSSL_VERSION in str(caught.value)
    assert "pkcs11-provider" in caught.value.remedy


def test_a_uri_in_place_of_a_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"on a PKCS#11 token"):
        tls_context(options(tmp_path, tmp_path / URI.decode()))


def test_a_damaged_key_file_is_not_taken_for_a_token(tmp_path: Path) -> None:
    (tmp_path / "other.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")

    with pytest.raises(ConfigError, match="Cannot load the certificates"):
        tls_context(options(tmp_path, tmp_path / "other.key"))


def test_a_key_in_a_file_is_used(tmp_path: Path) -> None:
    assert tls_context(options(tmp_path, tmp_path / "tls.key")).minimum_version >= ssl.TLSVersion.TLSv1_2

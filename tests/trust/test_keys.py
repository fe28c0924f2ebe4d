"""Keys in files and on tokens: opening them, and keeping them private."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from hedgerow.trust.errors import KeyUnusable
from hedgerow.trust.keys import PASSPHRASE, PIN, Secrets, make_key, open_signer, public_half, read_public
from hedgerow.trust.roles import name_of

SECRET = "correct horse battery staple"


def no_prompt(text: str) -> str:
    raise AssertionError(f"unexpected prompt: {text}")


def sign_and_verify(name: str, secrets: Secrets) -> None:
    signer = open_signer(name, secrets)
    signer.public_key.verify_signature(signer.sign(b"data"), b"data")


# Files


def test_a_key_signs_with_its_passphrase_and_is_private_to_its_owner(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key = make_key(tmp_path / "keys" / "anna.pem", SECRET)
    finally:
        os.umask(before)

    sign_and_verify(str(tmp_path / "keys/anna.pem"), Secrets([SECRET]))
    assert stat.S_IMODE((tmp_path / "keys/anna.pem").stat().st_mode) == 0o600
    assert b"ENCRYPTED" in (tmp_path / "keys/anna.pem").read_bytes()
    assert b"PRIVATE" not in (tmp_path / "keys/anna.pub").read_bytes()
    public = read_public(str(tmp_path / "keys/anna.pub"))
    assert (public.keyid, name_of(public)) == (key.keyid, "anna")


@pytest.mark.parametrize(
    ("passphrases", "message"), [([], "none was given"), (["wrong", "wrong too"], "the given ones do not open it")]
)
def test_a_key_cannot_be_opened_without_its_passphrase(tmp_path: Path, passphrases: list[str], message: str) -> None:
    """The error does not reveal the passphrases tried."""
    make_key(tmp_path / "anna.pem", SECRET)

    with pytest.raises(KeyUnusable, match=message) as refused:
        open_signer(str(tmp_path / "anna.pem"), Secrets(passphrases))

    assert "--passphrase-file" in refused.value.remedy
    assert not any(word in refused.value.explain() for word in (SECRET, *passphrases))


def test_passphrases_are_tried_in_order_and_prompted_for_last_and_once(tmp_path: Path) -> None:
    make_key(tmp_path / "anna.pem", SECRET)
    prompts: list[str] = []

    def prompt(text: str) -> str:
        prompts.append(text)
        return SECRET

    sign_and_verify(str(tmp_path / "anna.pem"), Secrets(["other", SECRET], ask=no_prompt))
    sign_and_verify(str(tmp_path / "anna.pem"), Secrets(["other"], ask=prompt))
    assert prompts == [f"Passphrase of {tmp_path / 'anna.pem'}"]


def test_passphrases_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words").write_text(f"another\n\n{SECRET}\n")
    monkeypatch.setenv(PASSPHRASE, "from outside")
    monkeypatch.setenv(PIN, "4711")

    secrets = Secrets.gather(tmp_path / "words")

    assert list(secrets.passphrases("it")) == ["another", SECRET, "from outside"]
    assert secrets.pin("it") == "4711"
    with pytest.raises(KeyUnusable, match="cannot be read"):
        Secrets.gather(tmp_path / "nowhere")


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    make_key(tmp_path / "anna.pem", None)
    before = [(tmp_path / name).read_bytes() for name in ("anna.pem", "anna.pub")]

    with pytest.raises(KeyUnusable, match=r"anna\.pem exists already"):
        make_key(tmp_path / "anna.pem", None)
    (tmp_path / "anna.pem").rename(tmp_path / "drawer.pem")
    with pytest.raises(KeyUnusable, match=r"anna\.pub exists already"):
        make_key(tmp_path / "anna.pem", None)
    with pytest.raises(KeyUnusable, match="is the name of a public key"):
        make_key(tmp_path / "bo.pub", None)
    assert [(tmp_path / name).read_bytes() for name in ("drawer.pem", "anna.pub")] == before


def test_a_public_key_is_derived_from_a_private_key(tmp_path: Path) -> None:
    key = make_key(tmp_path / "anna.pem", SECRET)
    public_half(tmp_path / "anna.pem").unlink()

    assert read_public(str(tmp_path / "anna.pem"), Secrets([SECRET])).keyid == key.keyid
    with pytest.raises(KeyUnusable, match="passphrase"):
        read_public(str(tmp_path / "anna.pem"))


def test_an_invalid_key_is_reported_as_such(tmp_path: Path) -> None:
    pem = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "text.pem").write_text("not a key")
    (tmp_path / "x25519.pem").write_bytes(x25519.X25519PrivateKey.generate().private_bytes(*pem))
    (tmp_path / "dsa.pub").write_bytes(dsa.generate_private_key(2048).public_key().public_bytes(*public))

    with pytest.raises(KeyUnusable, match="holds no private key"):
        open_signer(str(tmp_path / "text.pem"), Secrets())
    with pytest.raises(KeyUnusable, match="holds no public key"):
        read_public(str(tmp_path / "text.pem"))
    with pytest.raises(KeyUnusable, match="is of an unsupported kind"):
        open_signer(str(tmp_path / "x25519.pem"), Secrets())
    with pytest.raises(KeyUnusable, match="is of an unsupported kind"):
        read_public(str(tmp_path / "dsa.pub"))
    with pytest.raises(KeyUnusable, match="cannot be read"):
        open_signer(str(tmp_path / "nowhere.pem"), Secrets())


# Tokens: a real PKCS#11 module, SoftHSM


def test_a_key_on_a_token_signs(token: str) -> None:
    """Its label may have any characters."""
    sign_and_verify(token, Secrets(pins=["1234"]))

    assert name_of(read_public(token, Secrets(pins=["1234"]))) == token


def test_the_pin_is_prompted_for_and_a_wrong_one_is_tried_once(token: str) -> None:
    """Tokens lock after a few wrong PINs."""
    prompts: list[str] = []

    def prompt(text: str) -> str:
        prompts.append(text)
        return "1234"

    sign_and_verify(token, Secrets(ask=prompt))
    assert f"PIN of {token}" in prompts

    with pytest.raises(KeyUnusable, match="cannot be used") as refused:
        open_signer(token, Secrets(pins=["9999", "1234"], ask=no_prompt)).sign(b"data")
    assert "PIN" in refused.value.remedy
    assert "9999" not in refused.value.explain()
    with pytest.raises(KeyUnusable, match="needs a PIN"):
        open_signer(token, Secrets()).sign(b"data")
    sign_and_verify(token, Secrets(pins=["1234"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hsm:7?label=line 3+4", "could not find"),
        ("hsm:2?label=another", "another"),
        ("hsm:two", "does not name a key on a token"),
    ],
)
def test_a_key_missing_from_the_token_is_reported_as_such(token: str, name: str, message: str) -> None:
    with pytest.raises(KeyUnusable, match=message) as refused:
        open_signer(name, Secrets(pins=["1234"]))
    assert refused.value.remedy


def test_a_missing_pkcs11_module_is_reported(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKCS11LIB")

    with pytest.raises(KeyUnusable, match="PYKCS11LIB") as refused:
        open_signer(token, Secrets(pins=["1234"]))
    assert "PYKCS11LIB" in refused.value.remedy

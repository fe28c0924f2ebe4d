"""A node whose key is on a token, SoftHSM's or a TPM 2.0's, enrols and runs: TLS signs there, by OpenSSL's pkcs11-provider.

The TPM is `swtpm`. It has no resource manager, so the processes that use it do so one after the other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.enrolment.estate import EnrollingEstate, enrolling_estate, until

from hedgerow.enrolment.request import fingerprint
from hedgerow.pki.files import read_certificates
from hedgerow.testing import processes
from hedgerow.testing.ports import held_port

URI = "pkcs11:token=line%203;object=gate"
_FOLDERS = [Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"), Path("/usr/lib")]
_PROVIDER = """\
openssl_conf = main
[main]
providers = providers
[providers]
default = default_provider
pkcs11 = pkcs11_provider
[default_provider]
activate = 1
[pkcs11_provider]
activate = 1
pkcs11-module-path = {library}
pkcs11-module-token-pin = file:{pin}
"""


def installed(name: str, package: str, *folders: Path) -> Path:
    for folder in folders or _FOLDERS:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is not installed: apt-get install {package}")


def initialized(library: Path, slot: str, env: dict[str, str]) -> bool:
    tool = shutil.which("softhsm2-util")
    if tool is None:
        pytest.skip("softhsm2-util is not installed: apt-get install softhsm2")
    words = [
        tool,
        "--module",
        library,
        "--init-token",
        *slot.split(),
        "--label",
        "line 3",
        "--pin",
        "1234",
        "--so-pin",
        "0000",
    ]
    return processes.run(words, env=env, capture_output=True).returncode == 0


@contextmanager
def softhsm(folder: Path, env: dict[str, str]) -> Iterator[Path]:
    library = installed("libsofthsm2.so", "softhsm2", *(one / "softhsm" for one in _FOLDERS))
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    env["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    assert initialized(library, "--free", env)
    yield library


@contextmanager
def tpm(folder: Path, env: dict[str, str]) -> Iterator[Path]:
    library = installed("libtpm2_pkcs11.so.1", "libtpm2-pkcs11-1")
    installed("libtss2-tcti-swtpm.so.0", "libtss2-tcti-swtpm0")
    program = shutil.which("swtpm")
    if program is None:
        pytest.skip("swtpm is not installed: apt-get install swtpm")
    for name in ("state", "store"):
        (folder / name).mkdir()
    with ExitStack() as held:
        ports: set[int] = set()
        while not (pair := [port for port in ports if port + 1 in ports]):  # the control port is the next one
            ports.add(held.enter_context(held_port()))
        server, control = (f"type=tcp,bindaddr=127.0.0.1,port={port}" for port in (pair[0], pair[0] + 1))
        words = ["socket", "--tpm2", "--tpmstate", f"dir={folder / 'state'}", "--server", server, "--ctrl", control]
        process = processes.start([program, *words, "--flags", "not-need-init,startup-clear"])
        try:
            env |= {
                "TPM2_PKCS11_STORE": str(folder / "store"),
                "TPM2_PKCS11_TCTI": f"swtpm:host=127.0.0.1,port={pair[0]}",
            }
            until(lambda: initialized(library, "--slot 1", env))
            yield library
        finally:
            processes.end(process)


TOKENS = {"softhsm": softhsm, "tpm": tpm}


@pytest.fixture(params=TOKENS)
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of processes that use the token."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed: pip install 'hedgerow[pkcs11]'")
    env = {**os.environ, "HEDGEROW_TOKEN_PIN": "1234"}
    with TOKENS[request.param](tmp_path, env) as library:
        yield env | {"PYKCS11LIB": str(library)}


@pytest.fixture
def with_provider(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    modules = os.environ.get("OPENSSL_MODULES")
    folders = [Path(modules)] if modules else [folder / "ossl-modules" for folder in _FOLDERS]
    installed("pkcs11.so", "pkcs11-provider (on Debian 12 with -t bookworm-backports)", *folders)
    (tmp_path / "pin").write_text("1234\n")
    conf = _PROVIDER.format(library=environment["PYKCS11LIB"], pin=tmp_path / "pin")
    (tmp_path / "openssl.cnf").write_text(conf)
    return environment | {"OPENSSL_CONF": str(tmp_path / "openssl.cnf")}


@pytest.fixture(scope="module")
def estate() -> Iterator[EnrollingEstate]:
    rules = [{"name": "all", "count": 9}]
    with enrolling_estate(places="places.json", pki="../../../pki", rules=rules) as made:
        yield made


def enrolled(
    estate: EnrollingEstate, state: Path, env: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    token = state.with_suffix(".claim")
    token.write_text(estate.add_claim().token())
    words = [sys.executable, "-m", "hedgerow", "enrol", token, "--state", state, "--key", URI, "--once", *options]
    return processes.run(words, env=env, capture_output=True, text=True)


@pytest.mark.long
def test_a_key_on_a_token_is_certified_and_without_a_provider_refused_for_tls(
    estate: EnrollingEstate, environment: dict[str, str], tmp_path: Path
) -> None:
    state = tmp_path / "node"
    refused = enrolled(estate, state, environment)
    assert refused.returncode == 2
    assert "could not connect with this key" in refused.stderr

    done = enrolled(estate, state, environment, "--accept-unusable-key")

    assert done.returncode == 0, done.stderr
    (machine,) = (
        one for one in estate.machines("approved").values() if one.node is not None and one.node in done.stdout
    )
    key = read_certificates(state / "tls/tls.crt")[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert fingerprint(key) == machine.fingerprint
    assert "PRIVATE" not in (state / "tls/tls.key").read_text()


@pytest.mark.long
def test_a_node_with_a_key_on_a_token_runs(
    estate: EnrollingEstate, with_provider: dict[str, str], tmp_path: Path
) -> None:
    state = tmp_path / "node"
    done = enrolled(estate, state, with_provider)
    assert done.returncode == 0, done.stderr
    name = done.stdout.partition("This machine is ")[2].partition(".")[0]

    with (tmp_path / "log").open("wb") as out:
        words = [sys.executable, "-m", "hedgerow", "node", "run", state / "node.yaml"]
        node = processes.start(words, env=with_provider, stdout=out, stderr=out)
    try:
        until(lambda: estate.is_up(name) or node.poll() is not None, (tmp_path / "log").read_text)
        assert node.poll() is None, (tmp_path / "log").read_text()
    finally:
        processes.end(node)
    assert "PRIVATE" not in (state / "tls/tls.key").read_text()

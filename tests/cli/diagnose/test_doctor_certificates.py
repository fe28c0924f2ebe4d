"""`hedgerow doctor`: certificates, keys, revocation lists, and plain text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hedgerow.cli.main import app
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import parse
from hedgerow.testing.mosquitto import Mosquitto, TlsFiles

LIFE = timedelta(days=8)


class Node:
    """The files of a node and its broker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        now = datetime.now(UTC)
        self.pki = Pki(folder / "pki", lambda: now)
        self.pki.init("test", ["hall"])
        self.broker_home = self.pki.issue(parse("hall/broker"), LIFE, hosts=["localhost"]).folder
        self.home = self.pki.issue(parse("hall/gateway"), LIFE).folder
        self.other = self.pki.issue(parse("hall/other"), LIFE).folder

    def reissue(self, ago: timedelta) -> None:
        """Replace the node's certificate by one issued some time ago."""
        past = Pki(self.folder / "past", lambda: datetime.now(UTC) - ago)
        past.init("test", ["hall"])
        reissued = past.issue(parse("hall/gateway"), LIFE).folder
        for name in ("tls.crt", "tls.key", "trust.crt", "trust.crl"):
            shutil.copy(reissued / name, self.home / name)

    def config(self, url: str) -> Path:
        path = self.folder / "node.yaml"
        tls = f"{{ca_file: {self.home}/trust.crt, cert_file: {self.home}/tls.crt, key_file: {self.home}/tls.key, crl_file: {self.home}/trust.crl}}"
        path.write_text(
            f"node: {{site: hall, name: gateway}}\nbroker:\n  url: {url}\n  tls: {tls}\n"
            "pipelines: {doors: {subscribe: plant/+, stages: [parse]}}\n"
        )
        return path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def certificates(hedgerow: Callable[..., Any], node: Node) -> Callable[..., list[dict[str, str]]]:
    """Runs doctor, and returns its checks of certificates."""

    def run(url: str = "mqtts://localhost:1") -> list[dict[str, str]]:
        result = hedgerow("doctor", "--json", "--config", node.config(url))
        return [check for check in result.json["checks"] if check["check"] == "certificates"]

    return run


def test_valid_certificates_are_shown_with_their_expiry(node: Node, certificates: Callable[..., Any]) -> None:
    home = node.broker_home
    tls = TlsFiles(home / "trust.crt", home / "tls.crt", home / "tls.key", True, home / "trust.crl", True)
    with Mosquitto(tls=tls) as broker:
        (found,) = certificates(f"mqtts://localhost:{broker.port}")

    assert found["state"] == "ok"
    assert found["detail"].startswith("hall/gateway, valid until 20")


def key_readable_by_everyone(node: Node) -> None:
    (node.home / "tls.key").chmod(0o644)


def anothers_files(node: Node) -> None:
    for name in ("tls.crt", "tls.key"):
        shutil.copy(node.other / name, node.home / name)


def anothers_key(node: Node) -> None:
    shutil.copy(node.other / "tls.key", node.home / "tls.key")


def revoked(node: Node) -> None:
    node.pki.revoke(parse("hall/gateway"), "key-compromise")


def missing_revocation_list(node: Node) -> None:
    shutil.copy(node.pki.folder / "root.crl", node.home / "trust.crl")


def issued_ten_years_ago(node: Node) -> None:
    node.reissue(timedelta(days=3660))


@pytest.mark.parametrize(
    ("spoil", "state", "detail", "remedy"),
    [
        (key_readable_by_everyone, "failed", "is readable by every user on this machine (0644)", "chmod 600"),
        (anothers_files, "failed", "is the certificate of 'hall/other', but this node is 'hall/gateway'", "Use the files of"),
        (anothers_key, "failed", "is not the key of the certificate", "from the same folder"),
        (revoked, "failed", "is revoked", "hedgerow pki issue"),
        (missing_revocation_list, "failed", "has no list of", "from the same folder"),
        (lambda node: node.reissue(timedelta(days=7)), "warning", "expires in", "hedgerow pki renew"),
        (lambda node: node.reissue(timedelta(days=9)), "failed", "the certificate of hall/gateway expired on", "hedgerow pki renew"),
        (lambda node: node.reissue(timedelta(days=-5)), "failed", "the clock may be wrong: it says", "Set the clock"),
        (issued_ten_years_ago, "failed", "the revocation list of ", "with an expired list a broker refuses every client"),
    ],
)  # fmt: skip
def test_a_problem_with_certificates_is_reported_with_its_remedy(
    node: Node, certificates: Callable[..., Any], spoil: Callable[[Node], None], state: str, detail: str, remedy: str
) -> None:
    spoil(node)
    found = [check for check in certificates() if detail in check["detail"]]

    assert found, certificates()
    assert found[0]["state"] == state
    assert remedy in found[0]["remedy"]


def test_plain_text_to_a_broker_that_is_not_on_loopback_is_flagged_in_red(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.0.0.0 reaches this machine too, but is no loopback address."""
    monkeypatch.delenv("HEDGEROW_BROKER__URL", raising=False)
    result = CliRunner().invoke(app, ["doctor", "--broker", f"mqtt://0.0.0.0:{broker.port}"], color=True)
    (line,) = [line for line in result.output.splitlines() if " is plain text on a network" in line]

    assert "\x1b[31m" in line
    assert "Use mqtts:// with certificates" in result.output


def test_an_old_revocation_list_beside_the_certificate_is_a_warning(node: Node, hedgerow: Callable[..., Any]) -> None:
    """Also of a node that does not check lists itself: its broker has most likely the same one."""
    node.reissue(timedelta(days=40))
    config = node.config("mqtts://localhost:1")
    with_list = config.read_text()
    for text, state in (
        (with_list.replace(f", crl_file: {node.home}/trust.crl", ""), "warning"),
        (with_list, "failed"),
    ):
        config.write_text(text)
        checks = hedgerow("doctor", "--json", "--config", config).json["checks"]
        found = [one for one in checks if "revocation list" in one["detail"]]
        assert [one["state"] for one in found] == [state]
        assert "expired on" in found[0]["detail"]
        assert "refuses every client" in found[0]["remedy"]

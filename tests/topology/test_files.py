"""Rendered files: complete, readable, and never overwritten silently."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from ruamel.yaml import YAML

from hedgerow.errors import ConfigError
from hedgerow.testing.mosquitto import find_mosquitto
from hedgerow.topology import files
from hedgerow.topology.load import Described, load
from hedgerow.topology.render import render

EXAMPLE = Path(__file__).parents[2] / "configs" / "topology.yaml"
TEXTS = {PurePosixPath("s/acl"): "one\n", PurePosixPath("s/README.md"): "# s\n"}


@pytest.fixture(scope="module")
def example() -> Described:
    return load(EXAMPLE)


@pytest.fixture(scope="module")
def texts(example: Described) -> dict[str, str]:
    return {str(path): text for path, text in render(example).items()}


def test_written_files_are_recognised_as_rendered() -> None:
    for path, text in TEXTS.items():
        content = files.headed(path, text, "topology.yaml")
        assert files.is_unedited(content)
        assert not files.is_unedited(content + "more\n")
        assert not files.is_unedited(content.replace("one", "two").replace("# s", "# t"))
        assert not files.is_unedited(text)


def test_rendering_again_changes_nothing(tmp_path: Path) -> None:
    first, second = (files.write(TEXTS, "t.yaml", tmp_path) for _ in range(2))

    assert (len(first.created), len(first.unchanged)) == (2, 0)
    assert (len(second.created), len(second.changed), len(second.unchanged)) == (0, 0, 2)


def test_no_file_is_overwritten_if_one_was_edited_by_hand(tmp_path: Path) -> None:
    files.write(TEXTS, "t.yaml", tmp_path)
    acl = tmp_path / "s" / "acl"
    acl.write_text(acl.read_text() + "by hand\n")
    changed = {path: text + "new\n" for path, text in TEXTS.items()}

    with pytest.raises(files.EditedByHand, match="s/acl") as caught:
        files.write(changed, "t.yaml", tmp_path)
    assert caught.value.paths == (acl,)
    assert "--force" in caught.value.remedy
    assert "new" not in (tmp_path / "s" / "README.md").read_text()

    assert len(files.write(changed, "t.yaml", tmp_path, force=True).changed) == 2


def test_a_changed_topology_is_not_mistaken_for_an_edit_by_hand(tmp_path: Path) -> None:
    files.write(TEXTS, "t.yaml", tmp_path)

    written = files.write(TEXTS | {PurePosixPath("s/acl"): "two\n"}, "t.yaml", tmp_path)

    assert written.changed == (tmp_path / "s" / "acl",)


def test_obsolete_files_are_reported_and_kept(tmp_path: Path) -> None:
    files.write(TEXTS | {PurePosixPath("gone/acl"): "x\n"}, "t.yaml", tmp_path)
    (tmp_path / "gone" / "notes").write_text("not rendered\n")

    assert files.write(TEXTS, "t.yaml", tmp_path).obsolete == (tmp_path / "gone" / "acl",)
    assert (tmp_path / "gone" / "acl").exists()


def test_an_unwritable_folder_is_reported_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="cannot be written"):
        files.write(TEXTS, "t.yaml", tmp_path / "file")


def test_every_placeholder_is_filled_in_and_lines_are_short(texts: dict[str, str]) -> None:
    for path, text in texts.items():
        assert "${" not in text, path
        assert text.endswith("\n"), path
        if "nodes/" not in path and not path.endswith((".md", "k3s.yaml")):  # these contain other files' text
            assert max(map(len, text.splitlines())) <= 120, path


def test_the_bridge_lists_topics_in_both_directions(texts: dict[str, str]) -> None:
    text = texts["shop-12/mosquitto.conf"]

    assert [line for line in text.splitlines() if line.startswith("topic ")] == [
        "topic hedgerow/v1/retail/shop-12/+/status out 1",
        "topic hedgerow/v1/retail/shop-12/+/health out 0",
        "topic hedgerow/v1/retail/shop-12/+/event/# out 1",
        "topic hedgerow/v1/retail/shop-12/+/reported out 1",
        "topic hedgerow/v1/retail/shop-12/+/reply/up/# out 1",
        "topic hedgerow/v1/retail/shop-12/+/result/visitors/# out 1",
        "topic hedgerow/v1/retail/shop-12/+/result/delivery-notes/# out 1",
        "topic hedgerow/v1/retail/shop-12/+/blob/ask/# out 1",
        "topic hedgerow/v1/retail/shop-12/~/blob/# in 1",
        "topic hedgerow/v1/retail/shop-12/+/desired in 1",
        "topic hedgerow/v1/retail/shop-12/+/ack in 1",
        *(
            f"topic hedgerow/v1/retail/shop-12/+/command/{name} in 1"
            for name in ("adjust", "health", "info", "pause", "ping", "reload", "resume", "stop")
        ),
    ]
    for line in (
        "bridge_protocol_version mqttv50",
        "cleansession false",
        "restart_timeout 2 60",
        "bridge_max_packet_size 1048576",
        "notifications true",
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_identity_as_username true",
        "max_inflight_messages 1000",
        "autosave_interval 60",
    ):
        assert f"\n{line}\n" in text
    assert "the default of 20 gives 500 messages a second;\n# 1000 give 25,000." in text
    assert "listener 1883" not in text


def test_a_plain_listener_exists_only_on_request_and_only_on_loopback(texts: dict[str, str]) -> None:
    plain = [path for path, text in texts.items() if path.endswith("mosquitto.conf") and "allow_anonymous true" in text]

    assert plain == ["shop-13/mosquitto.conf"]
    assert (
        "listener 1883 127.0.0.1\nallow_anonymous true\nacl_file /etc/hedgerow/shop-13/acl.loopback\n"
        in texts[plain[0]]
    )


def test_containers_and_units_are_well_formed(example: Described, texts: dict[str, str]) -> None:
    compose = YAML(typ="safe").load(texts["shop-14/compose.yaml"])
    assert list(compose["services"]) == ["broker", "gateway", "office"]
    for path, text in texts.items():
        if path.endswith((".service", ".container")):
            unit = configparser.ConfigParser(strict=False, interpolation=None)
            unit.optionxform = str  # type: ignore[assignment,method-assign]
            unit.read_string(text)
            assert {"Unit", "Service", "Install"} <= set(unit.sections()), path
    service = texts["shop-12/systemd/hedgerow-gateway.service"]
    assert "Type=notify\n" in service
    assert "WatchdogSec=60\n" in service
    assert "node run /etc/hedgerow/shop-12/nodes/gateway.yaml\n" in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_accepts_every_directive_of_the_unit(texts: dict[str, str], tmp_path: Path) -> None:
    unit = tmp_path / "hedgerow-gateway.service"
    text = texts["shop-12/systemd/hedgerow-gateway.service"].replace("/opt/hedgerow/bin/hedgerow", "/bin/true")
    unit.write_text(text.replace("User=hedgerow\nGroup=hedgerow\n", ""))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})

    assert unit.name not in result.stderr


def test_a_broker_too_old_for_its_configuration_reports_it(texts: dict[str, str], tmp_path: Path) -> None:
    """The installed Mosquitto knows every setting: it fails only at opening files, which do not exist here."""
    conf = tmp_path / "mosquitto.conf"
    for name in ("shop-13", "retail"):
        conf.write_text(texts[f"{name}/mosquitto.conf"].replace("user mosquitto", "user root"))
        log = subprocess.run(
            [find_mosquitto(), "-c", conf], capture_output=True, text=True, check=False, timeout=60
        ).stderr
        assert "Unknown" not in log
        assert "Config loaded" in log

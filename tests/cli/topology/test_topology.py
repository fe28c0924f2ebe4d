"""`hedgerow topology` and `hedgerow site`."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest
from ruamel.yaml import YAML

from hedgerow import configfile
from hedgerow.topology.load import load
from hedgerow.topology.model import Topology

CONFIGS = Path(__file__).parents[3] / "configs"
BASE = "pipelines: {doors: {subscribe: plant/+/door, stages: [parse]}}\n"
SMALL = """\
# A comment.
region: {name: north, broker: r.example}
pipelines: base.yaml
sensors: {cam: plant/1/door}
sites:
  hall: {broker: hall.lan, nodes: [a]}  # the first one
"""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "topology.yaml").write_text(SMALL)
    return tmp_path / "topology.yaml"


def test_the_example_is_valid_and_its_only_remark_is_about_images(hedgerow) -> None:
    """Nobody but its operator knows the digests of images."""
    result = hedgerow("topology", "check", CONFIGS / "topology.yaml")

    assert result.code == 0
    assert re.fullmatch(r"remark: machine\.broker_image, machine\.node_image, machine\.region_image: .*\n", result.err)
    assert result.out.endswith("topology.yaml: ok (3 sites, 4 nodes)\n")


def test_the_committed_schema_is_current_and_accepts_the_example(hedgerow) -> None:
    """To update it: `hedgerow topology schema > configs/topology.schema.json`."""
    import jsonschema

    schema = orjson.loads(orjson.dumps(configfile.schema(Topology)))
    assert orjson.loads((CONFIGS / "topology.schema.json").read_bytes()) == schema
    assert hedgerow("topology", "schema").json == schema
    jsonschema.validate(YAML(typ="safe").load((CONFIGS / "topology.yaml").read_text()), schema)


def test_a_mistake_is_reported_with_line_and_remedy(hedgerow, topology: Path) -> None:
    topology.write_text(SMALL.replace("nodes: [a]", "nods: [a]"))

    result = hedgerow("topology", "check", topology)

    assert result.code == 2
    assert f"{topology}:6: error: sites.hall.nods: unknown key\n  → Did you mean `nodes`?\n" in result.err


def test_check_reports_the_same_as_json(hedgerow, topology: Path) -> None:
    topology.write_text(SMALL + "up: {gates: true}\n")

    result = hedgerow("topology", "check", "--json", topology)

    assert result.code == 2
    assert (result.json["ok"], result.json["problems"][0]["line"]) == (False, 7)


def test_render_lists_the_files_it_wrote_and_a_second_time_none(hedgerow, topology: Path, tmp_path: Path) -> None:
    first = hedgerow("topology", "render", topology, "--out", tmp_path / "out")
    second = hedgerow("topology", "render", topology, "--out", tmp_path / "out", "--json")

    assert f"created  {tmp_path}/out/hall/mosquitto.conf\n" in first.out
    assert (second.json["made"], second.json["changed"]) == ([], [])
    assert len(second.json["same"]) == sum(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_a_file_edited_by_hand_needs_force(hedgerow, topology: Path, tmp_path: Path) -> None:
    hedgerow("topology", "render", topology, "--out", tmp_path / "out")
    acl = tmp_path / "out" / "hall" / "acl"
    acl.write_text(acl.read_text() + "user mallory\ntopic #\n")

    assert hedgerow("topology", "render", topology, "--out", tmp_path / "out").code == 2
    assert "mallory" in acl.read_text()
    assert hedgerow("topology", "render", topology, "--out", tmp_path / "out", "--force").code == 0
    assert "mallory" not in acl.read_text()


def test_a_site_is_added_and_the_rest_is_unchanged(hedgerow, topology: Path) -> None:
    result = hedgerow("site", "init", topology, "--name", "yard", "--broker", "yard.lan", "--node", "a", "--node", "b")

    assert result.code == 0
    assert topology.read_text() == SMALL + "  yard:\n    broker: yard.lan\n    nodes: [a, b]\n"
    assert "README.md then says where each file goes" in result.out


def test_a_new_topology_is_valid(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "new.yaml"

    result = hedgerow(
        "site", "init", path, "--region", "north", "--region-broker", "r.example", "--name", "hall",
        "--broker", "hall.lan", "--node", "a", "--pipelines", "base.yaml",
    )  # fmt: skip

    assert result.code == 0
    topology = load(path).topology
    assert (topology.region.name, list(topology.sites), topology.region.broker) == (
        "north",
        ["hall"],
        "mqtts://r.example:8883",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--name is missing"),
        (["--name", "hall", "--broker", "x", "--node", "a"], "already has a site hall"),
        (["--name", "y d", "--broker", "x", "--node", "a"], "use 1 to 64 letters"),
        (["--name", "yard", "--broker", "mqtt://x", "--node", "a"], "TLS is required between machines"),
    ],
)
def test_an_invalid_site_changes_nothing(hedgerow, topology: Path, options: list[str], message: str) -> None:
    result = hedgerow("site", "init", topology, *options)

    assert result.code == 2
    assert message in result.err
    assert topology.read_text() == SMALL


def test_on_a_terminal_missing_values_are_prompted_for(
    hedgerow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hedgerow.cli.topology.site._interactive", lambda: True)
    path = tmp_path / "new.yaml"

    result = hedgerow("site", "init", path, input="north\nr.example\nhall\n\na, b\nbase.yaml\n")

    assert "A site is a place with its own network and broker. Its name?" in result.out
    site = YAML(typ="safe").load(path.read_text())["sites"]["hall"]
    assert site == {"broker": "broker.hall.lan", "nodes": ["a", "b"]}

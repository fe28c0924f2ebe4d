"""Topology files: valid content, and errors."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples
from tests.topology.conftest import BASE

from hedgerow.config import NodeConfig
from hedgerow.configfile import BadConfigFile, Document, merge
from hedgerow.topics import Channel, matches, overlap, parse
from hedgerow.topology import check
from hedgerow.topology.load import Described, load
from hedgerow.topology.model import Topology
from hedgerow.topology.nodes import node_config
from hedgerow.topology.render import render

NAMES = ("a", "a.b", "0_0", "hall-2", "A", "hedgerow", "v1", "status", "x" * 64)
names = st.sampled_from(NAMES)
pipelines = st.sampled_from(["doors", "secrets"])
fields = st.lists(names, min_size=1, max_size=3)
ups = st.dictionaries(
    pipelines,
    st.booleans() | st.builds(lambda keep: {"keep": keep}, fields) | st.builds(lambda drop: {"drop": drop}, fields),
)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Generate topologies without clashing names."""
    names_ = draw(st.permutations(NAMES))
    region, parent, *sites = names_[:4]
    nodes, services = names_[4:7], names_[7:]
    document = {
        "region": {"name": region, "broker": "r.example", "roles": {"viewer": services[:1], "collector": services[1:]}},
        "pipelines": "base.yaml",
        "up": draw(ups),
        "sites": {
            site: {
                "broker": "s.lan",
                "nodes": draw(st.lists(st.sampled_from(nodes[:2]), min_size=1, unique=True)),
                "sensors": {nodes[2]: ["plant/1/door"]},
                "up": draw(st.none() | ups),
                "loopback_port": draw(st.none() | st.integers(1, 65_535)),
            }
            for site in sites
        },
    }
    if draw(st.booleans()):
        document["parent"] = {"name": parent, "broker": "p.example:1234"}
    return Topology.model_validate(document)


def described(topology: Topology) -> Described:
    texts = {
        (site, node): node_config(topology, site, node, BASE)
        for site, place in topology.sites.items()
        for node in place.nodes
    }
    nodes = {key: Document(text, Path("base.yaml")).as_a(NodeConfig, "config") for key, text in texts.items()}
    return Described("topology.yaml", topology, texts, nodes, {})


def rights(acl: str) -> dict[str, list[tuple[str, str]]]:
    """Parse an ACL file into permissions by user."""
    users: dict[str, list[tuple[str, str]]] = {}
    for line in acl.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            user = users.setdefault(rest, [])
        elif word == "topic":
            right, _, pattern = rest.partition(" ")
            user.append((right, pattern))
        else:
            assert not line or word == "#", line
    return users


@given(topologies())
@settings(max_examples=examples(15), deadline=None)
def test_no_user_may_write_below_another_name(topology: Topology) -> None:
    """In every topology, nodes write only under their own name, sensors under no node's, bridges only for their site."""
    assert list(check.clashes(topology)) == []
    texts = {str(path): text for path, text in render(described(topology)).items()}
    region = topology.region.name
    for site, place in topology.sites.items():
        users = rights(texts[f"{site}/acl"])
        for node in place.nodes:
            for right, pattern in users[f"{site}/{node}"]:
                if right != "read":
                    everyone = f"hedgerow/v1/{region}/{site}/~/reply/#"
                    assert pattern.startswith(f"hedgerow/v1/{region}/{site}/{node}/") or pattern == everyone
                    assert pattern.split("/")[5] not in (Channel.DESIRED, Channel.COMMAND, Channel.ACK)
        for sensor in topology.sensors_of(site):
            assert all(
                right == "write" and not overlap(pattern, "hedgerow/#") for right, pattern in users[f"{site}/{sensor}"]
            )
        for right, pattern in rights(texts[f"{region}/acl"])[site]:
            own = f"hedgerow/v1/{region}/{site}/+/"
            assert pattern.startswith(own) or (right, pattern) == ("write", f"$SYS/broker/connection/{site}/state")
            if right != "read":
                assert pattern.split("/")[-1] not in (Channel.DESIRED, Channel.ACK)
                assert Channel.COMMAND not in pattern.split("/")[5:]


@given(topologies())
@settings(max_examples=examples(15), deadline=None)
def test_only_what_the_policy_names_leaves_a_site(topology: Topology) -> None:
    texts = {str(path): text for path, text in render(described(topology)).items()}
    for site in topology.sites:
        lines = [line.split() for line in texts[f"{site}/mosquitto.conf"].splitlines() if line.startswith("topic ")]
        carried = [pattern for _, pattern, direction, _ in lines if direction in ("out", "both")]
        base = f"hedgerow/v1/{topology.region.name}/{site}/gw"
        for pipeline in ("doors", "secrets"):
            leaves = any(matches(pattern, f"{base}/result/{pipeline}") for pattern in carried)
            assert leaves is (pipeline in topology.up_of(site))
        for stays in ("plant/1/door", f"{base}/dead/doors", f"{base}/command/ping", "hedgerow/v1/other/x/gw/status"):
            assert not any(matches(pattern, stays) for pattern in carried)
        assert all(len(parse(pattern.replace("+", "n").replace("#", "t")) or ()) == 3 for _, pattern, *_ in lines)


@given(topologies())
@settings(max_examples=examples(10), deadline=None)
def test_the_same_topology_gives_the_same_bytes(topology: Topology) -> None:
    first, second = render(described(topology)), render(described(topology.model_copy(deep=True)))

    assert first == second
    assert all(not path.is_absolute() and ".." not in path.parts for path in first)


@given(topologies())
@settings(max_examples=examples(10), deadline=None)
def test_a_rendered_node_has_its_identity_and_permissions(topology: Topology) -> None:
    for (site, node), config in described(topology).nodes.items():
        assert str(config.node.address) == f"{topology.region.name}/{site}/{node}"
        assert config.broker.url == topology.sites[site].broker
        rules = topology.up_of(site)
        for pipeline, built in config.pipelines.items():
            if pipeline in rules:
                assert built.publish.fields == rules[pipeline]
            else:
                assert not built.publish.fields


levels = st.lists(st.sampled_from(["a", "b", "+"]), min_size=1, max_size=4)
filters = st.builds(lambda parts, rest: "/".join([*parts, *rest]), levels, st.sampled_from([[], ["#"]]))
topics = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5).map("/".join)


@given(filters, filters, topics)
def test_filters_that_match_the_same_topic_overlap(one: str, other: str, topic: str) -> None:
    assert overlap(one, other) is overlap(other, one)
    assert overlap(one, topic) is matches(one, topic)
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)


def test_overrides_are_merged_and_null_removes() -> None:
    document = {"a": {"x": 1, "y": 2}, "b": 1, "c": [1]}

    merge(document, {"a": {"y": 3, "z": 4}, "b": None, "c": [2], "d": {"e": 5}})

    assert document == {"a": {"x": 1, "y": 3, "z": 4}, "c": [2], "d": {"e": 5}}


GOOD = """\
region: {name: north, broker: r.example}
pipelines: base.yaml
sites:
  hall:
    broker: hall.lan
    nodes: [a, b]
"""


@pytest.mark.parametrize(
    ("was", "wrong", "line", "message"),
    [
        ("broker: hall.lan", "broker: mqtt://hall.lan", 5, "TLS is required between machines"),
        ("broker: hall.lan", "broker: hall.lan:99999", 5, "write HOST or mqtts://HOST:PORT"),
        ("nodes: [a, b]", "nodes: [a, a]", 6, "a name is duplicated"),
        ("nodes: [a, b]", "nodes: []", 6, "must"),
        ("nodes: [a, b]", "nodes: [broker]", 6, "broker's own certificate"),
        ("nodes: [a, b]", "nodes: [a]\n    sensors: {a: plant/x}", 6, "a is both a node and a sensor"),
        ("nodes: [a, b]", "nodes: [a]\n    sensors: {s: hedgerow/v1/x}", 7, "a sensor may not write"),
        ("nodes: [a, b]", "nodes: [a]\n    sensors: {s: '#'}", 7, "a sensor may not write"),
        ("nodes: [a, b]", "nodes: [a]\n    roles: {operator: [a]}", 7, "also the name of a machine"),
        ("nodes: [a, b]", "nodes: [a]\n    roles: {operator: [kim], viewer: [kim]}", 7, "kim has two roles"),
        ("nodes: [a, b]", "nodes: [a]\n    roles: {boss: [kim]}", 7, "must be one of"),
        ("nodes: [a, b]", "nodes: [a]\n    nods: [b]", 7, "unknown key"),
        ("nodes: [a, b]", "nodes: [a]\n    up: {door: true}", 7, "no node of hall runs a pipeline 'door'"),
        ("nodes: [a, b]", "nodes: [a]\n    up: {doors: {keep: [x], drop: [y]}}", 7, "give `keep` or `drop`"),
        ("nodes: [a, b]", "nodes: [a]\n    up: {doors: 3}", 7, "write true, false, "),
        ("nodes: [a, b]", "nodes: {a: {override: {log: {level: loud}}}}", 6, "must be one of 'debug'"),
        ("nodes: [a, b]", "nodes: {a: {override: {pipelines: {doors: {subscribe: '#'}}}}}", 2, "also matches what this node"),
        ("nodes: [a, b]", "nodes: {a: {override: {pipelines: {doors: {subscribe: $share/g/x}}}}}", 2, "is a shared subscription"),
        ("nodes: [a, b]", "nodes: {a: {pipelines: none.yaml}}", 6, "cannot be read"),
        ("pipelines: base.yaml", "pipelines: bad.yaml", 2, "bad.yaml:1: nodde: unknown key"),
        ("pipelines: base.yaml", "up: {}", 6, "hall/a has no base file"),
        ("pipelines: base.yaml", "pipelines: models.yaml", 2, "model m of hall/a does not exist"),
        ("pipelines: base.yaml", "pipelines: fields.yaml\nup: {doors: {drop: [x]}}", 3, "fields are selected both here and in"),
        ("  hall:", "  north:", 4, "north is also a name above the site"),
        ("  hall:", "  region:", 4, "region is also a name above the site"),
    ],
)  # fmt: skip
def test_errors_have_their_line(tmp_path: Path, was: str, wrong: str, line: int, message: str) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "bad.yaml").write_text("nodde: {}\n")
    (tmp_path / "models.yaml").write_text("models: {m: {path: not/here.onnx}}\n" + BASE)
    (tmp_path / "fields.yaml").write_text(BASE.replace("[parse]", "[parse]\n    publish: {fields: {keep: [y]}}"))
    path = tmp_path / "topology.yaml"
    path.write_text(GOOD)
    load(path)
    assert was in GOOD
    path.write_text(GOOD.replace(was, wrong))

    with pytest.raises(BadConfigFile) as caught:
        load(path)
    first = caught.value.problems[0]
    assert message in str(first)
    assert first.line == line
    assert first.remedy
    assert "hedgerow topology check" in caught.value.remedy


def test_shared_subscriptions_need_a_setting_and_give_the_right_to_read_their_filter(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE.replace("plant/+/vault", "$share/g/plant/+/vault"))
    path = tmp_path / "topology.yaml"
    path.write_text(GOOD + "shared_subscriptions: true\n")
    texts = render(load(path))
    assert "topic read plant/+/vault\n" in texts[PurePosixPath("hall/acl")]


def test_a_sensor_without_subscribers_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "topology.yaml"
    path.write_text(GOOD + "sensors: {cam: [plant/1/door], old: [plant/1/x], key: [plant/1/safe]}\n")
    loaded = load(path)

    assert list(check.remarks(loaded.topology, loaded.nodes)) == [
        "hall: no pipeline subscribes to what sensor old sends (plant/1/x)"
    ]


@pytest.mark.parametrize(
    ("sends", "pipeline", "may_invent"),
    [
        ("plant/s1/door", "{subscribe: plant/#, stages: [parse]}", False),
        ("plant/s1/#", "{subscribe: plant/+/door, stages: [parse]}", False),
        ("plant/s1/#", "{subscribe: plant/+, stages: [parse]}", False),
        ("plant/s1/#", "{subscribe: plant/+/+, stages: [parse]}", True),
        ("plant/s1/#", "{subscribe: plant/+/+, stages: [parse], stream: {by: level, level: 1}}", False),
        ("plant/s1/#", "{subscribe: plant/+/+, stages: [parse], stream: {by: level, level: 2}}", True),
        ("plant/+/door", "{subscribe: plant/+/door, stages: [parse], stream: {by: level, level: 1}}", True),
        ("plant/+/door", "{subscribe: plant/+/door, stages: [parse], stream: {by: level, level: 0}}", False),
        ("plant/+/door", "{subscribe: [plant/1/door, plant/2/door], stages: [parse]}", False),
        ("plant/#", "{subscribe: plant/+/door, stages: [parse]}", True),
    ],
)
def test_a_sensor_that_may_invent_streams_is_a_remark(
    sends: str, pipeline: str, may_invent: bool, tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text(BASE + f"\n  free: {pipeline}\n")
    path = tmp_path / "topology.yaml"
    path.write_text(GOOD + f"sensors: {{cam: ['{sends}']}}\n")
    loaded = load(path)

    found = [text for text in check.remarks(loaded.topology, loaded.nodes) if "may invent" in text]
    assert any("sensor cam" in text and sends in text and "free" in text for text in found) is may_invent


def test_model_files_are_copied_beside_the_nodes_that_run_them(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "m.onnx").write_bytes(b"model")
    (tmp_path / "shared" / "base.yaml").write_text("models: {m: {path: m.onnx}}\n" + BASE)
    path = tmp_path / "topology.yaml"
    path.write_text(GOOD.replace("base.yaml", "shared/base.yaml"))

    assert load(path).models == {"hall": {Path("m.onnx"): tmp_path / "shared" / "m.onnx"}}


def test_comments_of_the_base_file_stay_unless_their_keys_are_removed(tmp_path: Path) -> None:
    topology = Topology.model_validate(
        {
            "region": {"name": "r", "broker": "r"},
            "sites": {"s": {"broker": "s", "nodes": {"a": None, "b": {"override": {"pipelines": {"doors": None}}}}}},
            "up": {"doors": {"keep": ["x"]}},
        }
    )
    base = BASE.replace("  secrets:", "  # Never for the region.\n  secrets:")
    whole, part = node_config(topology, "s", "a", base), node_config(topology, "s", "b", base)

    assert "    stages: [parse]\n  # Never for the region.\n  secrets:" in whole
    assert "doors" not in part
    assert "#" not in part
    assert PurePosixPath("s/nodes/a.yaml") in render(described(topology))

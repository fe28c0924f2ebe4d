"""No text of a topology, or of a file that it names, adds a line, a key or a word to a rendered file."""

from __future__ import annotations

import configparser
import copy
import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML
from tests.topology.conftest import BASE

from hedgerow.configfile import BadConfigFile
from hedgerow.topology import files
from hedgerow.topology.load import load
from hedgerow.topology.model import Topology
from hedgerow.topology.render import render

MARK = "zzinjected"
HOSTILE = {
    "a line": f"x\ntopic readwrite {MARK}/#",
    "a user": f"x\nuser {MARK}\ntopic write #",
    "a carriage return": f"x\r{MARK} y",
    "a NEL": f"x\x85{MARK}: y",
    "a line separator": f"x\u2028{MARK}: y",
    "an escape": f"x\x1b[2J{MARK}",
    "a reversal": f"x\u202e{MARK}",
    "NUL": f"x\0{MARK}",
    "a surrogate": f"x\ud800{MARK}",
    "a quote": f'x", "{MARK}',
    "an apostrophe": f"x' {MARK} '",
    "a command": f"x$(touch {MARK})",
    "a backtick": f"x`touch {MARK}`",
    "a semicolon": f"x; touch {MARK}",
    "a specifier": f"x%n {MARK}",
    "a variable": f"x${{{MARK}}}",
    "a mapping": f"x: {MARK}",
    "a YAML comment": f"x #{MARK}",
    "a flow mapping": f"x}}, {{{MARK}: y",
    "a comment's end": f"x --> {MARK}",
    "a volume": f"x:/:{MARK}",
    "a trailing space": f"{MARK} ",
    "a leading space": f" {MARK}",
}
GOOD: dict[str, Any] = {
    "region": {"name": "north", "broker": "r.example", "roles": {"viewer": ["wall"], "collector": ["collector"]}},
    "parent": {"name": "world", "broker": "p.example", "regions": ["south"], "roles": {"viewer": ["board"]}},
    "pipelines": "base.yaml",
    "sensors": {"camera": ["plant/1/door"]},
    "up": {"doors": {"keep": ["x"]}},
    "commands": ["ping"],
    "sites": {
        "hall": {
            "broker": "hall.lan",
            "nodes": {"a": {"pipelines": "base.yaml", "override": {"node": {"labels": {"ring": "early"}}}}},
            "pipelines": "base.yaml",
            "sensors": {"camera": ["plant/1/door"]},
            "up": {"doors": {"drop": ["x"]}},
            "roles": {"operator": ["kim"]},
        }
    },
    "machine": {
        "pki": "pki", "config": "out", "state": "state", "broker_user": "mosquitto", "command": "bin/hedgerow",
        "broker_image": "a/b:1", "node_image": "a/c:1", "region_image": "a/d:1", "broker_ids": "5:5", "node_ids": "6:6",
    },
}  # fmt: skip


def texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every text in a document: values, and keys that are names (ending with `~key`)."""
    if isinstance(value, dict):
        for key, item in value.items():
            if path and path[-1] in ("sites", "nodes", "sensors", "up", "labels", "roles"):
                yield (*path, key, "~key")
            yield from texts(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from texts(item, (*path, number))
    elif isinstance(value, str):
        yield path


def with_text(path: tuple[Any, ...], text: str) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    at: Any = document
    end = -2 if path[-1] == "~key" else -1
    for key in path[:end]:
        at = at[key]
    if path[-1] == "~key":
        at[text] = at.pop(path[-2])
    else:
        at[path[-1]] = text
    return document


def shape(path: Path, text: str) -> object:
    """Return what a reader of a rendered file understands, without values that may differ."""
    if path.name.startswith("acl"):
        return [line.split()[:2] for line in text.split("\n") if line and line[0] != "#"]
    if path.name == "mosquitto.conf":
        return [line.split()[0] for line in text.split("\n") if line and line[0] != "#"]
    if path.suffix in (".container", ".service"):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.read_string(text)
        return {name: {key: len(value.split()) for key, value in unit[name].items()} for name in unit.sections()}
    if path.suffix == ".sh":
        return len(shlex.split(text, comments=True))
    if path.name == "k3s.yaml":
        return [keys(one) for one in YAML(typ="safe").load_all(text)]
    if path.suffix == ".yaml" and path.parent.name != "nodes":
        return keys(YAML(typ="safe").load(text))
    return len(text.split("\n")) if path.suffix == ".md" else None


def keys(value: Any) -> object:
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    return [keys(item) for item in value] if isinstance(value, list) else type(value).__name__


def rendered(folder: Path, document: dict[str, Any], base: str = BASE) -> dict[Path, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(base, "utf-8", "surrogatepass")
    (folder / "topology.yaml").write_text(json.dumps(document))  # JSON is YAML, and is written faster
    return {Path(path): text for path, text in render(load(folder / "topology.yaml")).items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, object]:
    return {path: shape(path, text) for path, text in rendered(tmp_path_factory.mktemp("good"), GOOD).items()}


PATHS = list(texts(GOOD))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_every_text_of_a_topology_is_refused_or_stays_one_value(
    tmp_path: Path, expected: dict[Path, object], path: tuple[Any, ...]
) -> None:
    """A line break in each; of the other texts a fifth, another one for each setting."""
    tried = {"a line": HOSTILE["a line"]} | dict(list(HOSTILE.items())[PATHS.index(path) % 5 :: 5])
    _try(tmp_path, expected, path, tried)


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_every_hostile_text_in_every_setting(
    tmp_path: Path, expected: dict[Path, object], path: tuple[Any, ...]
) -> None:
    _try(tmp_path, expected, path, HOSTILE)


def _try(tmp_path: Path, expected: dict[Path, object], path: tuple[Any, ...], tried: dict[str, str]) -> None:
    for number, (what, text) in enumerate(tried.items()):
        try:
            made = rendered(tmp_path / str(number), with_text(path, text))
        except (BadConfigFile, UnicodeEncodeError):  # a lone surrogate cannot be written
            continue
        renamed = "~key" in path
        if not renamed:
            assert {one: shape(one, content) for one, content in made.items()} == expected, what
        for one, content in made.items():
            for line in content.split("\n"):
                assert not line.strip().startswith((MARK, f"topic readwrite {MARK}", f"user {MARK}")), (what, one)


def test_every_text_field_of_the_model_is_tried() -> None:
    """A new field of the model must be added to the document above."""

    def fields(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            if "int" not in str(field.annotation) and "bool" not in str(field.annotation):
                yield name

    known = {str(part) for path in texts(GOOD) for part in path}
    for section in (Topology, *(type(value) for value in Topology.model_validate(GOOD).__dict__.values())):
        if isinstance(section, type) and issubclass(section, BaseModel):
            missing = set(fields(section)) - known - {"limits"}
            assert not missing, f"{section.__name__}: {missing}"


@pytest.mark.parametrize(
    "setting",
    [
        "metrics: {port: 9000, host: TEXT}",
        "pipelines: {doors: {subscribe: [plant/1/door, TEXT], stages: [parse]}}",
        "pipelines: {doors: {subscribe: [plant/1/door, $share/TEXT/plant/2], stages: [parse]}}",
        "pipelines: {doors: {subscribe: [plant/1/door], stages: [parse], publish: {fields: {keep: [TEXT]}}}}",
        "node: {labels: {ring: TEXT}}",
    ],
)
def test_texts_of_a_base_file_are_refused_or_stay_one_value(tmp_path: Path, setting: str) -> None:
    document = copy.deepcopy(GOOD) | {"up": {}, "shared_subscriptions": True}
    document["sites"]["hall"] |= {"up": {}}
    base = setting if setting.startswith("pipelines") else f"{setting}\n{BASE[BASE.index('pipelines') :]}"

    def dumped(text: str) -> str:
        value = YAML(typ="safe").load(base)

        def put(item: Any) -> Any:
            if isinstance(item, dict):
                return {key: put(one) for key, one in item.items()}
            if isinstance(item, list):
                return [put(one) for one in item]
            return item.replace("TEXT", text) if isinstance(item, str) else item

        return json.dumps(put(value))

    good = {path: shape(path, text) for path, text in rendered(tmp_path / "good", document, dumped("x")).items()}
    for number, (what, text) in enumerate(list(HOSTILE.items())[::3]):
        try:
            made = rendered(tmp_path / str(number), document, dumped(text))
        except (BadConfigFile, UnicodeEncodeError):
            continue
        assert {path: shape(path, content) for path, content in made.items()} == good, what


def test_a_comment_with_another_line_break_stays_inside_its_config_map(tmp_path: Path) -> None:
    """YAML 1.1 ends a line at U+2028 and U+0085 too, and Kubernetes reads YAML 1.1."""
    base = f"# here\u2028# {MARK}: 1\n" + BASE + f"# and\x85# {MARK}: 2\n"
    made = rendered(tmp_path, GOOD, base)

    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)  # type: ignore[assignment]
    for reader in (old, YAML(typ="safe")):
        kinds = [one["kind"] for one in reader.load_all(made[Path("hall/k3s.yaml")])]
        assert set(kinds) <= {"Namespace", "ConfigMap", "StatefulSet", "NetworkPolicy"}
    (config,) = (
        one["data"]["a.yaml"]
        for one in YAML(typ="safe").load_all(made[Path("hall/k3s.yaml")])
        if "a.yaml" in one.get("data", {})
    )
    assert config == made[Path("hall/nodes/a.yaml")]


@pytest.mark.parametrize("name", ["123", "1e3", "0x10", "null", "true", "no", "on", "2026-11-30", "0_0", "1.5"])
def test_names_that_look_like_numbers_or_truth_values_stay_texts(tmp_path: Path, name: str) -> None:
    document = copy.deepcopy(GOOD)
    document["region"] |= {"name": name}
    document["sites"]["hall"]["nodes"] = {f"n{name}" if name == "broker" else name: None}
    del document["sites"]["hall"]["sensors"]
    made = rendered(tmp_path, document)

    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)  # type: ignore[assignment]
    for reader in (old, YAML(typ="safe")):
        assert name in reader.load(made[Path("hall/compose.yaml")])["services"]
        assert reader.load(made[Path(name) / "service" / "region.yaml"])["region"]["name"] == name
        for path in (Path("hall/k3s.yaml"), Path(name) / "k3s.yaml"):
            for one in reader.load_all(made[path]):
                assert isinstance(one["metadata"]["name"], str)


def test_a_topology_in_a_folder_with_a_space_is_refused_only_where_the_folder_is_written(tmp_path: Path) -> None:
    """Relative paths start at the topology's folder; its own name is nobody's choice."""
    document = copy.deepcopy(GOOD)
    with pytest.raises(BadConfigFile, match="has the character ' '"):
        rendered(tmp_path / "my files", document)
    document["machine"] |= {"pki": "/p", "config": "/c", "state": "/s", "command": "/h"}
    assert rendered(tmp_path / "my files", document)


def test_the_name_of_a_topology_adds_no_line_to_the_files_made_from_it(tmp_path: Path) -> None:
    for name in (f"t\ntopic readwrite {MARK}/#", f"t --> {MARK}", f"t\x85{MARK}"):
        for path in ("acl", "README.md"):
            head, rest = files.headed(Path(path), "one\n", name).split("\n", 1)
            assert rest == "one\n"
            assert "-->" not in head.removesuffix(" -->")
            assert "\x85" not in head
            assert files.is_unedited(f"{head}\n{rest}")


def test_broker_scripts_are_valid_shell(tmp_path: Path) -> None:
    for path, text in rendered(tmp_path, GOOD).items():
        if path.suffix == ".sh":
            assert subprocess.run(["sh", "-n"], input=text.encode(), check=False, capture_output=True).stderr == b""

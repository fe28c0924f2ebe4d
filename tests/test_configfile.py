"""Configuration files: what is wrong is said with file, line, field, and what to write instead."""

from __future__ import annotations

from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from tests.examples import examples

from hedgerow import configfile
from hedgerow.config import NodeConfig, NodeSection
from hedgerow.configfile import BadConfigFile, Problem

WHOLE = """\
# A comment moves all lines down by one.
node:
  region: north
  site: plant-7
  name: press
broker:
  url: mqtts://broker.plant.lan:8883
models:
  door:
    path: models/door.onnx
pipelines:
  doors:
    subscribe: plant/+/door
    stream:
      by: level
      level: 1
    queue:
      max_frames: 100
    stages:
      - decode
      - infer: {model: door}
"""


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(BadConfigFile) as caught:
        configfile.parse(text, Path("node.yaml"))
    return caught.value.problems


@pytest.mark.parametrize("path", ["configs/node.yaml", "../here/configs/node.yaml"])
def test_relative_paths_lead_to_one_folder_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Joined to the file's folder again, as models' paths are, they stay the same: one folder holds a node's state."""
    (tmp_path / "here" / "configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    Path(path).write_text(WHOLE)

    state_dir = configfile.load(Path(path)).node.state_dir

    assert state_dir.resolve() == tmp_path / "here" / "configs" / ".hedgerow"
    assert Path(path).parent / state_dir == state_dir


def test_a_whole_file_becomes_a_configuration() -> None:
    config = configfile.parse(WHOLE)

    assert str(config.node.address) == "north/plant-7/press"
    assert config.pipelines["doors"].subscribe == ("plant/+/door",)
    assert [(stage.name, stage.config) for stage in config.pipelines["doors"].stages] == [
        ("decode", {}),
        ("infer", {"model": "door"}),
    ]


def test_an_empty_file_is_a_node_with_nothing_to_do() -> None:
    assert configfile.parse("") == NodeConfig(node=NodeSection(state_dir=Path(".hedgerow").absolute()))


def test_the_environment_goes_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one file serves many containers; what else the file says about the section stays."""
    monkeypatch.setenv("HEDGEROW_NODE__NAME", "press-2")

    node = configfile.parse(WHOLE).node

    assert (node.name, node.site) == ("press-2", "plant-7")


def test_the_former_name_of_fleet_origins_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = {"fleet.sources": "fleet.origins"}
    former = configfile.parse("fleet: {sources: [https://models.example/a]}")
    current = configfile.parse("fleet: {origins: [https://models.example/a]}")
    monkeypatch.setenv("HEDGEROW_FLEET__SOURCES", '["https://models.example/a"]')
    from_environment = configfile.parse("")

    assert [origin.url for origin in former.fleet.origins] == ["https://models.example/a"]
    assert former.fleet.origins == current.fleet.origins == from_environment.fleet.origins
    assert (former.renamed_keys, current.renamed_keys, from_environment.renamed_keys) == (renamed, {}, renamed)


def test_both_names_of_fleet_origins_together_are_refused() -> None:
    (problem,) = problems("fleet:\n  sources: []\n  origins: []\n")

    assert str(problem) == (
        "fleet: has both `origins` and `sources`, its former name; got {'sources': [], 'origins': []}"
    )
    assert (problem.line, problem.remedy) == (1, "Move all entries to `origins`.")


def test_a_problem_below_a_former_name_has_its_line_and_the_known_keys() -> None:
    (problem,) = problems("fleet:\n  sources:\n    - {url: 'https://models.example/a', ca_fil: ca.crt}\n")

    assert (problem.line, problem.field) == (3, "fleet.sources.0.ca_fil")
    assert problem.remedy == "Did you mean `ca_file`?"


def test_yes_and_on_are_words() -> None:
    """YAML 1.2: only `true` and `false` are booleans, so a site may be called `no`."""
    assert configfile.parse("node: {site: no, name: on}").node.site == "no"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            "node:\n  nmae: x\n",
            "node.yaml:2: node.nmae: unknown key\n    → Did you mean `name`?",
            id="misspelt",
        ),
        pytest.param(
            "zzz: 1\n",
            "node.yaml:1: zzz: unknown key\n    → Known here: broker, fleet, log, metrics, models, node, outbox, pipelines.",
            id="unknown",
        ),
        pytest.param(
            "node:\n  name: press\n  drain_s: soon\n",
            "node.yaml:3: node.drain_s: must be a number; got 'soon'\n"
            "    → Longest time to finish frames in flight when stopping or reloading.",
            id="wrong type",
        ),
        pytest.param(
            "models:\n  door: {device: CPU}\n",
            "node.yaml:2: models.door.path: is required\n    → Add `path:` here.",
            id="missing",
        ),
        pytest.param(
            "pipelines:\n  p:\n    subscribe: [a, b/#/c]\n    stages: [parse]\n",
            "node.yaml:3: pipelines.p.subscribe.1: 'b/#/c' is not a topic filter: level '#'; got 'b/#/c'\n"
            "    → `+` stands for one whole level, `#` for all that follow and only at the end: `plant/+/image`, `plant/#`.",
            id="filter",
        ),
        pytest.param(
            "pipelines:\n  p:\n    subscribe: a\n    stages:\n      - parse\n      - resize: 320\n",
            "node.yaml:6: pipelines.p.stages.1: write `resize: {key: value}`; got {'resize': 320}\n"
            "    → The stages, in order: `name` or `name: {key: value}`. See `hedgerow plugin list`.",
            id="stage",
        ),
        pytest.param(
            "broker: {url: localhost}\n",
            "node.yaml:1: broker.url: must match ^(mqtts?://(\\[[0-9a-fA-F:.]+\\]|[^/\\s:@\\[\\]]+)(:[0-9]{1,5})?|unix://?/\\S+)$; got 'localhost'\n"
            "    → mqtt://HOST:PORT, mqtts://HOST:PORT (TLS) or unix:///path/to/socket.",
            id="pattern",
        ),
        pytest.param(
            "node:\n  name: a\n  name: b\n",
            'node.yaml:3: not YAML: while constructing a mapping found duplicate key "name" with value "b" (original value: "a")\n'
            "    → Check indentation and quotes there.",
            id="twice",
        ),
        pytest.param(
            "- a\n- b\n",
            "node.yaml:1: expected `key: value` lines at the top\n    → Begin with `node:` and `pipelines:`, a topology with `region:` and `sites:`.",
            id="list",
        ),
    ],
)
def test_what_a_user_reads(text: str, told: str) -> None:
    with pytest.raises(BadConfigFile) as caught:
        configfile.parse(text, Path("node.yaml"))

    assert str(caught.value) == told


def test_every_problem_is_told_not_only_the_first() -> None:
    found = problems("node:\n  nmae: x\n  drain_s: -1\nbroker:\n  keepalive_s: 1\n")

    assert [(problem.line, problem.field) for problem in found] == [
        (2, "node.nmae"),
        (3, "node.drain_s"),
        (5, "broker.keepalive_s"),
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("node: {threads: 0}", "must be at least 1; got 0"),
        ("node: {drain_s: 0}", "must be more than 0; got 0"),
        ("node: {drain_s: soon}", "must be a number; got 'soon'"),
        ("node: {threads: 1.5}", "must be a whole number; got 1.5"),
        ("node: {site: 7}", "must be text; got 7"),
        ("node: []", "must be `key: value` lines; got []"),
        ("metrics: {port: 70000}", "must be at most 65535; got 70000"),
        ("metrics: {enabled: perhaps}", "must be true or false; got 'perhaps'"),
        ("log: {level: loud}", "must be one of 'debug', 'info', 'warning', 'error'; got 'loud'"),
        ("models: {door: {}}", "is required"),
        ("pipelines: {p: {subscribe: [], stages: [parse]}}", "must list at least 1; got []"),
        ("pipelines: {p: {subscribe: a, stages: parse}}", "must be a list; got 'parse'"),
        (f"node: {{drain_s: {'x' * 99}}}", f"must be a number; got '{'x' * 56}…"),
    ],
)
def test_what_is_wrong_is_said_in_an_operators_words(wrong: str, told: str) -> None:
    (problem,) = problems(f"{wrong}\n")

    assert (problem.line, problem.message) == (1, told)


def test_a_kind_of_mistake_without_words_of_ours_is_told_in_pydantics() -> None:
    class Due(BaseModel):
        at: date

    with pytest.raises(ValidationError) as caught:
        Due.model_validate({"at": []})

    assert configfile.explain(caught.value.errors()[0]) == ("must be a valid date; got []", "")


def test_a_variable_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_BROKER", "{not json")

    (problem,) = problems(WHOLE)

    assert problem.remedy == "Check the HEDGEROW_* environment variables."


# Where a key may be added, as the keys that lead there, with the line of that key's own section in WHOLE.
SECTIONS = [
    (),
    ("node",),
    ("broker",),
    ("models", "door"),
    ("pipelines", "doors"),
    ("pipelines", "doors", "stream"),
    ("pipelines", "doors", "queue"),
]


@settings(max_examples=examples(40))
@given(st.sampled_from(SECTIONS), st.from_regex(r"x_[a-z_]{1,20}", fullmatch=True), st.data())
def test_an_unknown_key_anywhere_is_told_with_its_line(section: tuple[str, ...], key: str, data: st.DataObject) -> None:
    """The line is that of the key, wherever in its section it stands."""
    lines = WHOLE.splitlines()
    indent = "  " * len(section)
    own = [
        number
        for number, line in enumerate(lines)
        if _path(lines, number)[:-1] == section and not line.startswith("#") and line.strip()
    ]
    at = data.draw(st.sampled_from(own))
    text = "\n".join([*lines[:at], f"{indent}{key}: 1", *lines[at:]])

    (problem,) = problems(text)

    assert (problem.line, problem.field, problem.message) == (at + 1, ".".join([*section, key]), "unknown key")


def _path(lines: list[str], number: int) -> tuple[str, ...]:
    """The keys that lead to a line, its own last."""
    line = lines[number]
    depth = len(line) - len(line.lstrip())
    own = (line.strip().partition(":")[0],)
    for above in range(number - 1, -1, -1):
        candidate = lines[above]
        if len(candidate) - len(candidate.lstrip()) < depth and not candidate.startswith("#"):
            return (*_path(lines, above), *own)
    return own


names = st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True)
documents = st.fixed_dictionaries(
    {},
    optional={
        "node": st.fixed_dictionaries({}, optional={"site": names, "name": names, "drain_s": st.floats(0.1, 1e6)}),
        "models": st.dictionaries(
            names,
            st.fixed_dictionaries(
                {"path": names},
                optional={
                    "max_batch": st.integers(1, 512),
                    "device": st.sampled_from(["CPU", "GPU"]),
                    "constants": st.dictionaries(names, st.booleans() | st.integers(-9, 9) | st.floats(-1, 1)),
                },
            ),
            max_size=3,
        ),
        "pipelines": st.dictionaries(
            names,
            st.fixed_dictionaries(
                {
                    "subscribe": names | st.lists(names, min_size=1, max_size=3),
                    "stages": st.lists(
                        names
                        | st.dictionaries(
                            names.filter(lambda n: n not in ("name", "config")),
                            st.dictionaries(names, st.integers(), max_size=2),
                            min_size=1,
                            max_size=1,
                        ),
                        min_size=1,
                        max_size=4,
                    ),
                }
            ),
            max_size=3,
        ),
    },
)


@settings(max_examples=examples(40))
@given(documents)
def test_a_configuration_survives_being_written_and_read(document: dict) -> None:
    """What a node reports as its configuration can be given back to it."""
    first = NodeConfig(**document)

    again = NodeConfig(**_plain(first.model_dump(mode="json", exclude_defaults=True)))

    assert again == first


def _plain(dumped: dict) -> dict:
    from io import StringIO

    written = StringIO()
    YAML(typ="safe").dump(dumped, written)
    return YAML(typ="safe").load(written.getvalue()) or {}


@given(st.text(max_size=200))
def test_no_text_brings_the_reader_down(text: str) -> None:
    """Whatever a file holds, it is a configuration or it is explained."""
    with suppress(BadConfigFile):
        configfile.parse(text)


def test_a_file_deep_enough_to_exhaust_the_stack_is_refused() -> None:
    (problem,) = problems("a: " + "[" * 800)

    assert problem.message == "nests deeper than 50 levels"


def test_where_a_path_of_keys_stands() -> None:
    line_of = configfile.Document(WHOLE, Path("node.yaml")).line_of

    assert line_of(("models", "door", "path")) == 10
    assert line_of(("pipelines", "doors", "stages", 1, "infer", "model")) == 21
    assert line_of(("pipelines", "doors", "no", "such")) == 12
    assert line_of(()) is None


def test_every_setting_is_described() -> None:
    """The description is the documentation, the editor's hint, and the remedy of an error."""

    def undescribed(model: type[BaseModel], path: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            found += [] if field.description else [f"{path}{name}"]
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(part, type) and issubclass(part, BaseModel) and part.__name__ != "StageEntry":
                    found += undescribed(part, f"{path}{name}.")
        return found

    assert undescribed(NodeConfig) == []

"""Configuration files: each problem is reported with file, line, field and remedy."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
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
from hedgerow.config import NodeConfig, NodeSection, PipelineConfig
from hedgerow.configfile import BadConfigFile, Problem
from hedgerow.trust import keys

COMPLETE = """\
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


def test_a_complete_file_is_read() -> None:
    config = configfile.parse(COMPLETE)

    assert str(config.node.address) == "north/plant-7/press"
    assert config.pipelines["doors"].subscribe == ("plant/+/door",)
    assert [(stage.name, stage.config) for stage in config.pipelines["doors"].stages] == [
        ("decode", {}),
        ("infer", {"model": "door"}),
    ]


@pytest.mark.parametrize("path", ["configs/node.yaml", "../here/configs/node.yaml"])
def test_relative_paths_give_one_state_folder_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Joining it to the file's folder again, as for models' paths, does not change it."""
    (tmp_path / "here" / "configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    Path(path).write_text(COMPLETE)

    state_dir = configfile.load(Path(path)).node.state_dir

    assert state_dir.resolve() == tmp_path / "here" / "configs" / ".hedgerow"
    assert Path(path).parent / state_dir == state_dir


def _path_settings(section: type[BaseModel], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, field in section.model_fields.items():
        kinds = typing.get_args(field.annotation) or (field.annotation,)
        if Path in kinds:
            yield (*keys, name), field.description or ""
        for kind in kinds:
            for inner in (kind, *typing.get_args(kind)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from _path_settings(inner, (*keys, name))


PATHS = dict(_path_settings(NodeConfig))


@pytest.mark.parametrize("keys", PATHS, ids=".".join)
def test_every_path_in_a_file_is_relative_to_its_folder_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...]
) -> None:
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    value: object = "here/file"
    if keys[0] == "pipelines":  # by name
        keys = ("pipelines", "p", *keys[1:])
    for key in reversed(keys):
        value = (
            [{key: value, "url": "https://models"}] if keys[-2:-1] == ("origins",) and key == keys[-1] else {key: value}
        )
        if isinstance(value, dict) and keys[:2] == ("pipelines", "p") and key == keys[-1]:
            value |= {"subscribe": "a", "stages": ["parse"]}
    assert isinstance(value, dict)
    if keys[0] == "broker":  # what makes the setting take effect
        value["broker"] |= {"url": "mqtts://broker"}
        value["broker"].get("tls", {}).setdefault("cert_file", "here/cert")
    if keys[0] == "fleet":
        value["fleet"].setdefault("root_file", "here/root")
    Path("configs/node.yaml").write_text(json.dumps(value))

    found: object = configfile.load(Path("configs/node.yaml"))
    for key in keys:
        found = found[key] if isinstance(found, dict) else getattr(found[0] if isinstance(found, tuple) else found, key)

    assert found == tmp_path / "configs" / "here" / "file"
    assert "relative to this file" in PATHS[tuple(key for key in keys if key != "p")].lower()


def test_an_empty_file_gives_the_defaults() -> None:
    assert configfile.parse("") == NodeConfig(node=NodeSection(state_dir=Path(".hedgerow").absolute()))


def test_the_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """One file can serve many containers; other keys of the section keep their values."""
    monkeypatch.setenv("HEDGEROW_NODE__NAME", "press-2")

    node = configfile.parse(COMPLETE).node

    assert (node.name, node.site) == ("press-2", "plant-7")


def test_yes_and_on_are_strings() -> None:
    """YAML 1.2: only `true` and `false` are booleans, so a site may be called `no`."""
    assert configfile.parse("node: {site: no, name: on}").node.site == "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "node:\n  nmae: x\n",
            "node.yaml:2: node.nmae: unknown key\n    → Did you mean `name`?",
            id="misspelt",
        ),
        pytest.param(
            "zzz: 1\n",
            "node.yaml:1: zzz: unknown key\n    → Known here: broker, fleet, log, metrics, models, node, outbox, pipelines, remote.",
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
            "node.yaml:3: pipelines.p.subscribe.1: 'b/#/c' is not a topic filter: misplaced wildcard in level '#'; got 'b/#/c'\n"
            "    → `+` matches one whole level; `#`, only at the end, matches all further levels: `plant/+/image`, `plant/#`.",
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
            "node.yaml:1: broker.url: must be a broker address; got 'localhost'\n"
            "    → Write mqtt://HOST:PORT, mqtts://HOST:PORT, wss://HOST:PORT/PATH or unix:///path/to/socket. User name and password "
            "have their own settings.",
            id="pattern",
        ),
        pytest.param(
            "node:\n  name: a\n  name: b\n",
            'node.yaml:3: not YAML: while constructing a mapping found duplicate key "name" with value "b" (original value: "a")\n'
            "    → Check the indentation and quotes there.",
            id="twice",
        ),
        pytest.param(
            "- a\n- b\n",
            "node.yaml:1: expected `key: value` lines at the top\n    → Begin with `node:` and `pipelines:`; in a topology, with `region:` and `sites:`.",
            id="list",
        ),
    ],
)
def test_error_messages(text: str, message: str) -> None:
    with pytest.raises(BadConfigFile) as caught:
        configfile.parse(text, Path("node.yaml"))

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("remote: {reply_prefixes: [hedgerow]}", "must not reach into hedgerow/v1"),
        ("remote: {reply_prefixes: [hedgerow/v1/a/b/c/result]}", "must not reach into hedgerow/v1"),
        ("remote: {reply_prefixes: [$SYS]}", "must be the first levels of topics"),
        ("remote: {reply_prefixes: [/]}", "must be the first levels of topics"),
        ("remote: {reply_prefixes: [a/+]}", "must be the first levels of topics"),
        ("remote: {reply_prefixes: ['#']}", "must be the first levels of topics"),
        ("remote: {reply_prefixes: [plant]}", "would be frames of pipeline p, which subscribes to 'plant/+/door'"),
        ("node: {labels: {site: elsewhere}}", "the label 'site' is part of the node's address"),
        ("node: {labels: {node: other}}", "Set `node: {name: …}`"),
    ],
)
def test_replies_and_labels_cannot_claim_what_is_not_the_nodes(text: str, message: str) -> None:
    pipelines = "\npipelines: {p: {subscribe: plant/+/door, stages: [parse]}}\n"

    with pytest.raises(BadConfigFile) as refusal:
        configfile.parse(text + pipelines, Path("node.yaml"))

    assert message in refusal.value.explain()
    good = configfile.parse("remote: {reply_prefixes: [answers/, a/b]}" + pipelines, Path("node.yaml"))
    assert good.remote.reply_prefixes == ("answers", "a/b")


def test_all_problems_are_reported() -> None:
    found = problems("node:\n  nmae: x\n  drain_s: -1\nbroker:\n  keepalive_s: 1\n")

    assert [(problem.line, problem.field) for problem in found] == [
        (2, "node.nmae"),
        (3, "node.drain_s"),
        (5, "broker.keepalive_s"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_validation_errors_are_explained_in_plain_words(text: str, message: str) -> None:
    (problem,) = problems(f"{text}\n")

    assert (problem.line, problem.message) == (1, message)


def test_the_time_limit_of_a_stage_survives_being_written_and_read_again() -> None:
    """A change is merged into what the file says, and a worker gets the configuration as a document."""
    pipeline = PipelineConfig.model_validate(
        {"subscribe": "a", "stages": [{"name": "parse", "timeout_s": 5}, {"parse": {"timeout_s": 7}}]}
    )
    again = PipelineConfig.model_validate(pipeline.model_dump())

    assert again == pipeline
    assert [stage.timeout_s for stage in again.stages] == [5, None]
    assert again.stages[1].config == {"timeout_s": 7}, "a setting of the stage"


def test_rare_validation_errors_use_the_message_of_pydantic() -> None:
    class Due(BaseModel):
        at: date

    with pytest.raises(ValidationError) as caught:
        Due.model_validate({"at": []})

    assert configfile.explain(caught.value.errors()[0]) == ("must be a valid date; got []", "")


def test_for_an_invalid_environment_variable_the_remedy_names_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_BROKER", "{not json")

    (problem,) = problems(COMPLETE)

    assert problem.remedy == "Check the HEDGEROW_* environment variables."


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("HEDGEROW_BROKER_URL", "Did you mean HEDGEROW_BROKER__URL?"),
        ("hedgerow_broker_url", "Did you mean HEDGEROW_BROKER__URL?"),
        ("HEDGEROW_LOGLEVEL", "Did you mean HEDGEROW_LOG__LEVEL?"),
        ("HEDGEROW_LOG_LEVEL", "Did you mean HEDGEROW_LOG__LEVEL?"),
        ("HEDGEROW_BROKERS__URL", "Did you mean HEDGEROW_BROKER__URL?"),
        ("HEDGEROW__BROKER__URL", "Did you mean HEDGEROW_BROKER__URL?"),
        ("HEDGEROW_TLS_CA_FILE", "Did you mean HEDGEROW_BROKER__TLS__CA_FILE?"),
        ("HEDGEROW_COLOUR", "Unset it, or write HEDGEROW_SECTION__KEY, with two underscores per level."),
        ("HEDGEROW_SERVICE_HOSTS", "Unset it, or write HEDGEROW_SECTION__KEY, with two underscores per level."),
    ],
)
def test_an_environment_variable_that_overrides_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, remedy: str
) -> None:
    monkeypatch.setenv(variable, "mqtt://broker:1883")

    (problem,) = problems(COMPLETE)

    assert (problem.field, problem.remedy) == (variable, remedy)


@pytest.mark.parametrize("variable", ["HEDGEROW_BROKER__URLL", "HEDGEROW_NODE__NAM"])
def test_an_environment_variable_with_an_unknown_key_in_a_section_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "mqtt://broker:1883")

    assert len(problems(COMPLETE)) == 1


def test_other_variables_with_our_prefix_are_not_taken_for_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of signing, and those that Kubernetes sets in a pod for services called `hedgerow` and `hedgerow-region`."""
    for name in (keys.PASSPHRASE, keys.PIN):
        monkeypatch.setenv(name, "secret")
    for service in ("HEDGEROW", "HEDGEROW_REGION"):
        for name in (
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_MQTT",
            "PORT",
            "PORT_8883_TCP",
            "PORT_8883_TCP_ADDR",
        ):
            monkeypatch.setenv(f"{service}_{name}", "tcp://10.0.0.7:8883")

    assert configfile.parse(COMPLETE).node.name == "press"


# Sections of COMPLETE that a key can be added to.
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
def test_an_unknown_key_is_reported_with_its_line(section: tuple[str, ...], key: str, data: st.DataObject) -> None:
    """The line is that of the key, at any position in its section."""
    lines = COMPLETE.splitlines()
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
    """Return the keys that lead to a line, its own last."""
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
def test_a_configuration_survives_a_round_trip_through_yaml(document: dict) -> None:
    """A configuration that a node reports can be used as its configuration file."""
    first = NodeConfig(**document)

    again = NodeConfig(**_plain(first.model_dump(mode="json", exclude_defaults=True)))

    assert again == first


def _plain(dumped: dict) -> dict:
    from io import StringIO

    written = StringIO()
    YAML(typ="safe").dump(dumped, written)
    return YAML(typ="safe").load(written.getvalue()) or {}


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_as_configuration(text: str) -> None:
    """Any file is a configuration, or its problems are reported."""
    with suppress(BadConfigFile):
        configfile.parse(text)


def test_a_file_that_nests_too_deep_is_refused() -> None:
    (problem,) = problems("a: " + "[" * 800)

    assert problem.message == "nests deeper than 50 levels"


def test_line_of_returns_the_line_of_the_last_existing_key() -> None:
    line_of = configfile.Document(COMPLETE, Path("node.yaml")).line_of

    assert line_of(("models", "door", "path")) == 10
    assert line_of(("pipelines", "doors", "stages", 1, "infer", "model")) == 21
    assert line_of(("pipelines", "doors", "no", "such")) == 12
    assert line_of(()) is None


def test_every_setting_is_described() -> None:
    """Descriptions are documentation, editor hints and remedies."""

    def undescribed(model: type[BaseModel], path: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            found += [] if field.description else [f"{path}{name}"]
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(part, type) and issubclass(part, BaseModel) and part.__name__ != "StageEntry":
                    found += undescribed(part, f"{path}{name}.")
        return found

    assert undescribed(NodeConfig) == []


SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"broker: {{password: {SECRET}, password_file: secret}}",
        f"broker: {{url: 'mqtt://node:{SECRET}@broker'}}",
        f"broker: {{url: 'mqtts://{SECRET}@broker:8883'}}",
        f"broker: {{url: 'ws://node:{SECRET}@broker/mqtt'}}",
        f"broker: {{password: [{SECRET}]}}",
        f"broker: {{password: {{a: {SECRET}}}}}",
        f"broker: {{pasword: {SECRET}}}",
        f"broker: {{password: {SECRET}, keepalive_s: 1}}",
        f"broker: [{{password: {SECRET}}}]",
        f"broker: {{keepalive_s: {{password: {SECRET}}}}}",
        f"broker:\n  password: {SECRET}\n  password: {SECRET}2",
        f"broker:\n  password: *{SECRET}",
        f"broker:\n  password: !{SECRET} x",
        f"broker:\n  password: '{SECRET}",
        f"broker:\n  password: {SECRET}: x",
        f"broker:\n  password: {SECRET}\n  url: 'mqtt://node:{SECRET}@broker'",
        f"fleet: {{origins: ['https://node:{SECRET}@models.example/x']}}",
        f"fleet: {{origins: [{{url: 'https://node:{SECRET}@models.example/x'}}]}}",
        f"fleet: {{origins: [{{url: 'https://a', credentials: {SECRET}}}]}}",
        f"pipelines: {{p: {{subscribe: a, stages: [{{parse: {{token: {SECRET}}}, infer: 1}}]}}}}",
    ],
)
def test_an_error_never_shows_a_secret(text: str) -> None:
    with pytest.raises(BadConfigFile) as caught:
        configfile.parse(text)

    shown = caught.value.explain() + "".join(f"{problem} {problem.remedy}" for problem in caught.value.problems)
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [("URL", f"mqtt://node:{SECRET}@broker"), ("PASSWORD", SECRET), ("KEEPALIVE_S", f"mqtt://x:{SECRET}@y")],
)
def test_an_error_of_the_environment_never_shows_a_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HEDGEROW_BROKER__{name}", value)
    monkeypatch.setenv("HEDGEROW_BROKER__PASSWORD_FILE", "file")
    monkeypatch.setenv("HEDGEROW_BROKER__PASSWORD", SECRET)
    with pytest.raises(BadConfigFile) as caught:
        configfile.parse("")

    assert SECRET not in caught.value.explain()

"""From what runs to what should: few steps, in an order that works, and none the second time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.node.reconcile import (
    Admission,
    DesiredError,
    Fetch,
    GoBack,
    GoOver,
    Overlie,
    Recheck,
    Running,
    Step,
    admit,
    reconcile,
)
from hedgerow.wire.fleet import Desired, ModelRef, Quarantined

NODE = "north/shop-1/gateway"


def ref(version: int, name: str = "door") -> ModelRef:
    return ModelRef(name=name, version=f"{version}.0.0", digest=f"sha256:{version:064x}")


def desired(generation: int = 1, **said: Any) -> Desired:
    return Desired.model_validate({"node": NODE, "generation": generation, "at": 1000.0, **said})


def carried_out(steps: list[Step], running: Running) -> Running:
    """What runs when these steps have been taken."""
    for step in steps:
        match step:
            case Fetch(_, wanted):
                running = replace(running, installed=running.installed | {wanted.digest})
            case GoOver(model, wanted):
                assert wanted.digest in running.installed, "nothing serves that is not here"
                running = replace(running, serving={**running.serving, model: wanted})
            case GoBack(model):
                running = replace(running, serving={k: v for k, v in running.serving.items() if k != model})
            case Overlie(pipelines):
                running = replace(running, overlay=pipelines)
    return running


def test_a_new_version_is_fetched_and_then_serves() -> None:
    running = Running({"faces": "bundle:door"}, {"faces": ref(1)}, frozenset({ref(1).digest}))

    assert reconcile(desired(models={"faces": ref(2)}), running) == [Fetch("faces", ref(2)), GoOver("faces", ref(2))]


def test_a_version_that_is_here_is_not_fetched_again() -> None:
    """Which is what makes going back quick, and possible without a network."""
    running = Running({"faces": "bundle:door"}, {"faces": ref(2)}, frozenset({ref(1).digest, ref(2).digest}))

    assert reconcile(desired(models={"faces": ref(1)}), running) == [
        Recheck("faces", ref(1)),
        GoOver("faces", ref(1)),
    ]


def test_a_model_that_is_not_named_goes_back_to_its_file_or_serves_on() -> None:
    running = Running({"own": "door.onnx", "sent": "bundle:door"}, {"own": ref(1), "sent": ref(2)})

    assert reconcile(desired(), running) == [GoBack("own")]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"models": {"face": ref(1)}}, "unknown-model"),
        ({"models": {"faces": ref(9)}}, "quarantined"),
        ({"models": {"faces": ref(1, "gate")}}, "another-bundle"),
        ({"pipelines": {"nowhere": {"batch": 1}}}, "unknown-pipeline"),
        ({"pipelines": {"nowhere": None}}, "unknown-pipeline"),
    ],
)
def test_what_cannot_be_done_is_refused_as_a_whole(said: dict[str, Any], code: str) -> None:
    bad = Quarantined(digest=ref(9).digest, name="door", version="9.0.0", code="crashed", reason="it crashed", at=1.0)
    running = Running({"faces": "bundle:door"}, quarantined={ref(9).digest: bad}, pipelines=frozenset({"doors"}))

    with pytest.raises(DesiredError) as refused:
        reconcile(desired(**said), running)

    assert refused.value.code == code
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("models", "wanted", "remedy"),
    [
        ({"faces": "door.onnx", "facets": "door.onnx"}, "face", "Did you mean 'faces'?"),
        ({"gate": "g.onnx", "doors": "d.onnx"}, "face", "Its models: doors, gate. Add one to the node's file."),
        ({}, "face", "Its models: none. Add one to the node's file."),
    ],
)
def test_a_model_that_is_not_there_suggests_the_nearest_or_says_which_are(
    models: dict[str, str], wanted: str, remedy: str
) -> None:
    with pytest.raises(DesiredError) as refused:
        reconcile(desired(models={wanted: ref(1)}), Running(models))

    assert refused.value.remedy == remedy


def test_a_pipeline_that_is_not_there_says_which_are() -> None:
    for pipelines, there in (({"b", "a"}, "a, b"), (set(), "none")):
        with pytest.raises(DesiredError) as refused:
            reconcile(desired(pipelines={"c": {"batch": 1}}), Running({}, pipelines=frozenset(pipelines)))
        assert refused.value.remedy.startswith(f"Its pipelines: {there}. A new one needs")


def test_a_pipeline_that_is_not_there_may_be_added_with_all_it_needs() -> None:
    new = {"doors": {"subscribe": "a/#", "stages": ["parse"]}}

    assert reconcile(desired(pipelines=new), Running({})) == [Overlie(new)]


def test_a_version_of_the_bundle_that_the_file_names_may_serve() -> None:
    assert reconcile(desired(models={"faces": ref(1)}), Running({"faces": "bundle:door"}))
    assert reconcile(desired(models={"faces": ref(1, "gate")}), Running({"faces": "own.onnx"})), "a file has no name"


_refs = st.integers(1, 5).map(ref)
_models = st.dictionaries(st.sampled_from(["a", "b", "c"]), _refs)
_overlays = st.dictionaries(st.sampled_from(["p", "q"]), st.none() | st.just({"batch": 8}))
_runnings = st.builds(
    lambda own, serving, installed, overlay: Running(
        {"a": "bundle:door", "b": "door.onnx", "c": "bundle:door"} | own,
        serving,
        frozenset(each.digest for each in [*installed, *serving.values()]),
        pipelines=frozenset({"p", "q"}),
        overlay=overlay,
    ),
    st.just({}),
    _models,
    st.lists(_refs),
    _overlays,
)


@given(_models, _overlays, _runnings)
def test_once_carried_out_a_document_asks_for_nothing_more(models: Any, overlay: Any, running: Running) -> None:
    wanted = desired(models=models, pipelines=overlay)

    after = carried_out(reconcile(wanted, running), running)

    assert reconcile(wanted, after) == []
    assert {name: after.serving[name].digest for name in models} == {name: it.digest for name, it in models.items()}


@given(_models, _overlays, _runnings, st.integers(0, 6))
def test_a_node_that_dies_midway_does_the_rest_when_it_is_back(
    models: Any, overlay: Any, running: Running, done: int
) -> None:
    wanted = desired(models=models, pipelines=overlay)
    steps = reconcile(wanted, running)
    killed = carried_out(steps[:done], running)

    assert carried_out(reconcile(wanted, killed), killed) == carried_out(steps, running)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (desired(8), Admission.TAKE),
        (desired(7), Admission.KNOWN),
        (desired(6), Admission.OLD),
        (desired(8, node="north/shop-2/gateway"), Admission.STRAY),
        (desired(8, expires_at=1999.0), Admission.EXPIRED),
        (desired(8, expires_at=2000.0), Admission.TAKE),
        (desired(8, expires_at=2001.0), Admission.TAKE),
    ],
)
def test_only_a_newer_document_for_this_node_is_taken_in(document: Desired, expected: Admission) -> None:
    assert admit(document, NODE, 7, 2000.0, clock_doubtful=False) is expected


def test_nothing_counts_as_expired_by_a_clock_that_may_be_wrong() -> None:
    assert admit(desired(8, expires_at=1999.0), NODE, 7, 2000.0, clock_doubtful=True) is Admission.TAKE

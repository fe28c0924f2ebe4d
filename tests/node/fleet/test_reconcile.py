"""Reconciling: minimal steps, in a working order, and none the second time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.node.fleet.reconcile import (
    Admission,
    ChangePipelines,
    DesiredError,
    FetchPipelines,
    FetchVersion,
    Running,
    Step,
    SwapToFile,
    SwapVersion,
    VerifyAgain,
    WithdrawModel,
    admit,
    reconcile,
)
from hedgerow.wire.fleet import Desired, ModelRef, Quarantined

NODE = "north/shop-1/gateway"


def ref(version: int, name: str = "door") -> ModelRef:
    return ModelRef(name=name, version=f"{version}.0.0", digest=f"sha256:{version:064x}")


def desired(generation: int = 1, **fields: Any) -> Desired:
    return Desired.model_validate({"node": NODE, "generation": generation, "at": 1000.0, **fields})


def apply(steps: list[Step], running: Running) -> Running:
    """Return the running state after these steps."""
    for step in steps:
        match step:
            case FetchVersion(_, version):
                running = replace(running, installed=running.installed | {version.digest})
            case SwapVersion(model, version):
                assert version.digest in running.installed, "only installed versions serve"
                running = replace(running, serving={**running.serving, model: version})
            case SwapToFile(model):
                running = replace(running, serving={k: v for k, v in running.serving.items() if k != model})
            case ChangePipelines(pipelines):
                running = replace(running, overlay=pipelines)
    return running


@pytest.mark.parametrize(
    ("files", "users", "document", "steps"),
    [
        ({"m": "bundle:door"}, {}, {}, [WithdrawModel("m")]),
        ({"m": "own.onnx"}, {"m": ["p"]}, {}, [SwapToFile("m")]),
        (
            {"m": "bundle:door"},
            {"m": ["p"]},
            {"pipelines": {"p": None}},
            [ChangePipelines({"p": None}), WithdrawModel("m")],
        ),
        ({"m": "bundle:door"}, {"m": ["p"]}, {}, "model-needed"),
        ({"m": "bundle:door"}, {"m": ["p", "q"]}, {"pipelines": {"p": None}}, "model-needed"),
        ({}, {}, {}, [WithdrawModel("m")]),
    ],
    ids=[
        "unloaded",
        "back to its own file",
        "its pipeline goes first",
        "needed",
        "needed by another",
        "not in the file any more",
    ],
)
def test_a_withdrawn_model_is_unloaded_if_no_pipeline_needs_it(
    files: dict[str, str], users: dict[str, list[str]], document: dict[str, Any], steps: list[Step] | str
) -> None:
    running = Running(files, {"m": ref(1)}, pipelines=frozenset("pq"), users=users, assigned=frozenset("m"))
    asked = desired(withdrawn=["m", "unknown"], **document)
    if isinstance(steps, str):
        with pytest.raises(DesiredError) as refused:
            reconcile(asked, running)
        assert (refused.value.code, "q" in str(refused.value) or "p" in str(refused.value)) == (steps, True)
    else:
        assert reconcile(asked, running) == steps
    assert reconcile(desired(withdrawn=["m"]), Running({"m": "bundle:door"})) == []


def test_a_new_version_is_fetched_and_then_swapped_in() -> None:
    running = Running({"faces": "bundle:door"}, {"faces": ref(1)}, frozenset({ref(1).digest}))

    assert reconcile(desired(models={"faces": ref(2)}), running) == [
        FetchVersion("faces", ref(2)),
        SwapVersion("faces", ref(2)),
    ]


def test_an_installed_version_is_verified_again_and_not_fetched() -> None:
    """So a rollback is fast, and works without a network."""
    running = Running({"faces": "bundle:door"}, {"faces": ref(2)}, frozenset({ref(1).digest, ref(2).digest}))

    assert reconcile(desired(models={"faces": ref(1)}), running) == [
        VerifyAgain("faces", ref(1)),
        SwapVersion("faces", ref(1)),
    ]


def test_an_unnamed_model_returns_to_its_file_or_keeps_its_version() -> None:
    running = Running({"own": "door.onnx", "sent": "bundle:door"}, {"own": ref(1), "sent": ref(2)})

    assert reconcile(desired(), running) == [SwapToFile("own")]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"models": {"face": ref(1)}}, "unknown-model"),
        ({"models": {"faces": ref(9)}}, "quarantined"),
        ({"models": {"faces": ref(1, "gate")}}, "another-bundle"),
        ({"pipelines": {"nowhere": {"batch": 1}}}, "unknown-pipeline"),
        ({"pipelines": {"nowhere": None}}, "unknown-pipeline"),
    ],
)
def test_an_impossible_document_is_refused_as_a_whole(fields: dict[str, Any], code: str) -> None:
    bad = Quarantined(digest=ref(9).digest, name="door", version="9.0.0", code="crashed", reason="it crashed", at=1.0)
    running = Running({"faces": "bundle:door"}, quarantined={ref(9).digest: bad}, pipelines=frozenset({"doors"}))

    with pytest.raises(DesiredError) as refusal:
        reconcile(desired(**fields), running)

    assert refusal.value.code == code
    assert refusal.value.remedy


@pytest.mark.parametrize("labels", [{"ring": "late"}, {"tier": "gold", "ring": "late"}, {"spare": ""}, {}])
def test_labels_that_leave_the_nodes_own_alone_are_accepted(labels: dict[str, str]) -> None:
    own = {"site": "shop-1", "ring": "late", "spare": ""}

    assert reconcile(desired(labels=labels), Running({}, labels=own)) == []


@pytest.mark.parametrize("labels", [{"ring": "early"}, {"site": "shop-2"}, {"spare": "x"}, {"a": "b", "ring": ""}])
def test_a_label_that_would_hide_one_of_the_nodes_own_is_refused(labels: dict[str, str]) -> None:
    """Otherwise the region could make a node serve what was signed for others."""
    running = Running({"faces": "bundle:door"}, labels={"site": "shop-1", "ring": "late", "spare": ""})

    with pytest.raises(DesiredError, match="but the node's own is") as refusal:
        reconcile(desired(labels=labels, models={"faces": ref(1)}), running)

    assert refusal.value.code == "label-collision"
    assert f"`hedgerow node label {NODE} " in refusal.value.remedy


def test_steps_are_in_order_of_names_models_first() -> None:
    files = {"b": "door.onnx", "a": "door.onnx", "d": "own.onnx", "c": "own.onnx", "e": "bundle:door"}
    running = Running(files, {"d": ref(1), "c": ref(1), "e": ref(1), "gone": ref(1)}, frozenset({ref(3).digest}))
    batch = {"doors": {"batch": 8, "subscribe": "x"}}

    assert reconcile(desired(models={"b": ref(2), "a": ref(3)}, pipelines=batch), running) == [
        VerifyAgain("a", ref(3)),
        SwapVersion("a", ref(3)),
        FetchVersion("b", ref(2)),
        SwapVersion("b", ref(2)),
        SwapToFile("c"),
        SwapToFile("d"),
        ChangePipelines(batch),
    ]


def test_a_serving_version_is_left_alone_even_if_its_bundle_is_gone() -> None:
    running = Running(
        {"faces": "bundle:door"}, {"faces": ref(1)}, overlay={"doors": None}, pipelines=frozenset({"doors"})
    )

    assert reconcile(desired(models={"faces": ref(1)}, pipelines={"doors": None}), running) == []


def test_an_overlay_is_removed_when_the_document_no_longer_has_it() -> None:
    running = Running({}, overlay={"doors": {"batch": 8}}, pipelines=frozenset({"doors"}))

    assert reconcile(desired(), running) == [ChangePipelines({})]
    assert reconcile(desired(pipelines={"doors": {"batch": 9}}), running) == [ChangePipelines({"doors": {"batch": 9}})]


def test_a_model_with_a_file_of_its_own_may_serve_any_bundle() -> None:
    running = Running({"faces": "door.onnx"})

    assert reconcile(desired(models={"faces": ref(1, "gate")}), running)[-1] == SwapVersion("faces", ref(1, "gate"))


def test_a_pipeline_missing_in_the_file_is_new_if_it_has_subscriptions() -> None:
    new = {"subscribe": "a/b", "stages": []}

    assert reconcile(desired(pipelines={"new": new}), Running({})) == [ChangePipelines({"new": new})]


def test_signed_pipelines_are_verified_first_and_run_last() -> None:
    running = Running({"faces": "bundle:door"}, accepts_signed=True)
    document = desired(models={"faces": ref(1)}, signed_pipelines=ref(5, "doors"))

    steps = reconcile(document, running)

    assert steps[0] == FetchPipelines(ref(5, "doors"))
    assert steps[-1] == ChangePipelines({}, ref(5, "doors"))
    running = Running({}, accepts_signed=True, signed=ref(5, "doors"))
    assert reconcile(desired(signed_pipelines=ref(5, "doors")), running) == []
    assert reconcile(desired(), running) == [ChangePipelines({}, None)]
    changed = reconcile(desired(signed_pipelines=ref(6, "doors")), running)
    assert changed == [FetchPipelines(ref(6, "doors")), ChangePipelines({}, ref(6, "doors"))]


def test_signed_pipelines_are_refused_unless_the_file_allows_them() -> None:
    with pytest.raises(DesiredError) as caught:
        reconcile(desired(signed_pipelines=ref(5, "doors")), Running({}))
    assert caught.value.code == "signed-pipelines-off"
    assert "signed_pipelines: true" in caught.value.remedy


RELEASE = f"`hedgerow command {NODE} release digest={ref(9).digest}`"
BAD_NINE = Quarantined(digest=ref(9).digest, name="door", version="9.0.0", code="crashed", reason="it crashed", at=1.0)


@pytest.mark.parametrize(
    ("fields", "models", "message", "remedy"),
    [
        (
            {"models": {"face": ref(1)}}, ["fence", "faces", "gates"],
            "The node's file has no model 'face' to serve door 1.0.0", "Did you mean 'faces'?",
        ),
        (
            {"models": {"x": ref(1)}}, ["gates", "faces"],
            "The node's file has no model 'x' to serve door 1.0.0",
            "Its models: faces, gates. Add 'x' to the node's file.",
        ),
        (
            {"models": {"x": ref(1)}}, [],
            "The node's file has no model 'x' to serve door 1.0.0",
            "Its models: none. Add 'x' to the node's file.",
        ),
        (
            {"models": {"faces": ref(9)}}, ["faces"],
            "door 9.0.0 is in quarantine here: it crashed",
            f"Send another version. If the model is not at fault: {RELEASE}.",
        ),
        (
            {"models": {"faces": ref(1, "gate")}}, ["faces"],
            "Model 'faces' has the path bundle:door in the node's file, but the document names gate 1.0.0",
            "Send a version of door, or change `path:` in the node's file.",
        ),
        (
            {"pipelines": {"x": {"batch": 1}}}, [],
            "The node's file has no pipeline 'x' to change",
            "Its pipelines: doors, gates. A new one needs `subscribe` and `stages`.",
        ),
        (
            {"pipelines": {"doors": None, "x": None}}, [],
            "The node's file has no pipeline 'x' to change",
            "Its pipelines: doors, gates. A new one needs `subscribe` and `stages`.",
        ),
    ],
)  # fmt: skip
def test_a_refusal_has_its_message_and_remedy(
    fields: dict[str, Any], models: list[str], message: str, remedy: str
) -> None:
    running = Running(
        dict.fromkeys(models, "bundle:door"),
        quarantined={ref(9).digest: BAD_NINE},
        pipelines=frozenset({"gates", "doors"}),
    )

    with pytest.raises(DesiredError) as refusal:
        reconcile(desired(**fields), running)

    assert (str(refusal.value), refusal.value.remedy) == (message, remedy)


def test_a_refusal_without_any_pipelines_says_none() -> None:
    with pytest.raises(DesiredError) as refusal:
        reconcile(desired(pipelines={"x": None}), Running({}))

    assert refusal.value.remedy == "Its pipelines: none. A new one needs `subscribe` and `stages`."


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
def test_applying_a_document_again_takes_no_steps(models: Any, overlay: Any, running: Running) -> None:
    document = desired(models=models, pipelines=overlay)

    after = apply(reconcile(document, running), running)

    assert reconcile(document, after) == []
    assert {name: after.serving[name].digest for name in models} == {
        name: version.digest for name, version in models.items()
    }


@given(_models, _overlays, _runnings, st.integers(0, 6))
def test_a_node_killed_between_steps_takes_the_remaining_ones(
    models: Any, overlay: Any, running: Running, done: int
) -> None:
    document = desired(models=models, pipelines=overlay)
    steps = reconcile(document, running)
    killed = apply(steps[:done], running)

    assert apply(reconcile(document, killed), killed) == apply(steps, running)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (desired(8), Admission.ACCEPT),
        (desired(7), Admission.KNOWN),
        (desired(6), Admission.OLD),
        (desired(8, node="north/shop-2/gateway"), Admission.STRAY),
        (desired(9), Admission.ACCEPT),
        (desired(7, expires_at=1999.0), Admission.KNOWN),
        (desired(6, expires_at=1999.0), Admission.OLD),
        (desired(7, node="north/shop-2/gateway"), Admission.STRAY),
        (desired(8, expires_at=1999.9), Admission.EXPIRED),
        (desired(8, expires_at=2000.0), Admission.ACCEPT),
        (desired(8, expires_at=2001.0), Admission.ACCEPT),
    ],
)
def test_only_a_newer_document_for_this_node_is_accepted(document: Desired, expected: Admission) -> None:
    assert admit(document, NODE, 7, 2000.0, clock_doubtful=False) is expected


def test_nothing_counts_as_expired_by_a_clock_that_may_be_wrong() -> None:
    assert admit(desired(8, expires_at=1999.0), NODE, 7, 2000.0, clock_doubtful=True) is Admission.ACCEPT

"""Desired and reported documents: defaults, limits, and what is refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from hedgerow.region.rollouts.planning.spec import SwapSection
from hedgerow.wire.fleet import Desired, ModelRef, Quarantined, Reported, ReportedModel, SwapPolicy

DIGEST = "sha256:" + "0123456789abcdef" * 4
NODE = "north/hall/n1"


def ref(**changes: Any) -> ModelRef:
    return ModelRef.model_validate({"name": "faces", "version": "1.2.3", "digest": DIGEST, **changes})


def desired(**fields: Any) -> Desired:
    return Desired.model_validate({"node": NODE, "generation": 1, "at": 1.5, **fields})


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "f"},
        {"name": "f" * 64},
        {"version": "0.0.0"},
        {"version": "10.20.30-rc.1+build.7"},
        {"version": "1.2.3-" + "a" * 58},
        {"digest": "sha256:" + "f" * 64},
    ],
)
def test_a_model_reference_is_name_version_and_digest(changes: dict[str, Any]) -> None:
    assert ref(**changes).model_dump() == {"name": "faces", "version": "1.2.3", "digest": DIGEST, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "f" * 65},
        {"name": "a/b"},
        {"version": "1.2"},
        {"version": "01.2.3"},
        {"version": "1.2.3-"},
        {"version": "1.2.3-" + "a" * 59},
        {"version": "v1.2.3"},
        {"digest": "sha256:" + "f" * 63},
        {"digest": "sha256:" + "f" * 65},
        {"digest": "sha256:" + "F" * 64},
        {"digest": "f" * 64},
    ],
)
def test_an_invalid_model_reference_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ref(**changes)


def test_a_model_reference_is_shown_as_name_and_version() -> None:
    assert str(ref()) == "faces 1.2.3"


def test_defaults_of_a_desired_document() -> None:
    assert orjson.loads(desired().encode()) == {
        "schema": "hedgerow.desired/1",
        "node": NODE,
        "generation": 1,
        "at": 1.5,
        "models": {},
        "pipelines": {},
        "withdrawn": [],
        "labels": {},
        "swap": {
            "shadow_s": 0,
            "split_percent": 0,
            "split_s": 0,
            "probation_s": 60,
            "min_frames": 20,
            "max_error_share": 0.01,
            "max_disagreement": 0.05,
            "max_slowdown": 2.0,
            "max_growth_bytes": 268_435_456,
            "max_shift": 0.5,
            "memory": "refuse",
            "timeout_s": 3600,
        },
    }
    assert (desired().expires_at, desired().rollout) == (None, None)


def test_a_rollout_swaps_with_the_defaults_of_a_node() -> None:
    assert SwapSection().model_dump() == SwapPolicy().model_dump()


@pytest.mark.parametrize(
    "fields",
    [
        {"generation": 0},
        {"models": {"a/b": ref()}},
        {"pipelines": {"": None}},
        {"labels": {"-": "a"}},
        {"labels": {"a": "b "}},
        {"schema": "hedgerow.desired/2"},
    ],
)
def test_an_invalid_desired_document_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        desired(**fields)


def test_an_error_names_the_rule_that_is_broken() -> None:
    with pytest.raises(ValidationError, match="'-' is not a valid label key"):
        desired(labels={"-": "a"})
    with pytest.raises(ValidationError, match="not a valid name"):
        desired(models={"a/b": ref()})


NON_NEGATIVE = ("shadow_s", "split_s", "probation_s", "min_frames", "max_growth_bytes")
POSITIVE = ("max_slowdown", "max_shift", "timeout_s")
SHARES = ("max_error_share", "max_disagreement")


def swap(name: str, value: float) -> float:
    value_set: float = getattr(SwapPolicy.model_validate({name: value}), name)
    return value_set


def test_a_swap_policy_accepts_values_at_its_limits() -> None:
    for name in NON_NEGATIVE:
        assert swap(name, 0) == 0
    for name in POSITIVE:
        assert swap(name, 0.001) == 0.001
    for name in SHARES:
        assert (swap(name, 0), swap(name, 1)) == (0, 1)
    assert (swap("split_percent", 0), swap("split_percent", 99)) == (0, 99)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, -1) for name in NON_NEGATIVE),
        *((name, 0) for name in POSITIVE),
        *((name, value) for name in SHARES for value in (-0.001, 1.001)),
        ("split_percent", -1),
        ("split_percent", 100),
    ],
)
def test_a_swap_policy_refuses_values_beyond_its_limits(name: str, value: float) -> None:
    with pytest.raises(ValidationError):
        swap(name, value)


def test_defaults_of_a_reported_document() -> None:
    reported = Reported(node=NODE, session="s", at=1.5)

    assert orjson.loads(reported.encode()) == {
        "schema": "hedgerow.reported/1",
        "node": NODE,
        "session": "s",
        "at": 1.5,
        "generation": 0,
        "state": "succeeded",
        "step": "",
        "rolled_back": [],
        "models": {},
        "pipelines": {},
        "quarantined": [],
        "labels": {},
        "store_bytes": 0,
        "store_max_bytes": 0,
    }
    assert (reported.progress, reported.error) == (None, None)


def test_defaults_of_a_reported_model() -> None:
    model = ReportedModel(file_digest=DIGEST, backend="onnxruntime", device="CPU", since=1.5)

    assert orjson.loads(model.encode()) == {
        "file_digest": DIGEST, "backend": "onnxruntime", "device": "CPU", "since": 1.5, "results": 0, "stage": "kept",
    }  # fmt: skip
    assert (model.model, model.variant, model.previous) == (None, None, None)


@pytest.mark.parametrize(
    "fields",
    [{"state": "done"}, {"rolled_back": ["a/b"]}, {"labels": {"a": "-"}}, {"schema": "hedgerow.desired/1"}],
)
def test_an_invalid_reported_document_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Reported.model_validate({"node": NODE, "session": "s", "at": 1.5, **fields})


@pytest.mark.parametrize("fields", [{"digest": "x"}, {"name": "a/b"}, {"version": "1"}])
def test_a_quarantined_version_needs_a_valid_reference(fields: dict[str, Any]) -> None:
    quarantined = {
        "digest": DIGEST,
        "name": "faces",
        "version": "1.2.3",
        "code": "crashed",
        "reason": "it crashed",
        "at": 1.5,
    }

    assert Quarantined.model_validate(quarantined).model_dump() == quarantined
    with pytest.raises(ValidationError):
        Quarantined.model_validate({**quarantined, **fields})


@pytest.mark.parametrize("value", ["NaN", "1e999", "1" * 30, '[{"x": -Infinity}]'])
def test_changes_that_a_node_could_not_store_and_read_back_are_refused(value: str) -> None:
    """NaN would come back as null, which removes the setting; orjson has no integers of more than 64 bits."""
    document = desired(pipelines={"doors": {"queue": {"max_age_s": 5}}}).encode()

    with pytest.raises(ValidationError, match=r"changes of doors"):
        Desired.model_validate_json(document.replace(b'"max_age_s":5', f'"max_age_s":{value}'.encode()))

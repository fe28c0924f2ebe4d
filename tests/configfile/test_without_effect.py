"""Settings that another setting makes void, or that would do something else than they say: refused at the start, at their line.

Each case has the setting just past its bound, and just within.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from hedgerow import configfile
from hedgerow.configfile import BadConfigFile
from hedgerow.region import config as region_config
from hedgerow.region.rollouts.planning.spec import load_plan

PIPELINE: dict[str, Any] = {"subscribe": "plant/+/x", "stages": ["parse"]}


def pipeline(**fields: Any) -> dict[str, Any]:
    return {"pipelines": {"p": PIPELINE | fields}}


def limits(**ranges: Any) -> dict[str, Any]:
    return pipeline() | {
        "remote": {"limits": {name.replace("queue_", "queue."): each for name, each in ranges.items()}}
    }


ROOT = {"root_file": "root.json"}
ORIGIN = {"url": "oci://h/x", "token_hosts": ["auth.h"]}
MODEL = {"path": "m.onnx", "backend": "onnxruntime", "static_batches": True}
TLS = {"ca_file": "ca.pem"}

CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "broker.tls": (
        {"broker": {"url": "mqtt://10.0.0.1", "tls": TLS}},
        "ca_file would not be used, and nothing would be encrypted",
        {"broker": {"url": "mqtts://10.0.0.1", "tls": TLS}},
    ),
    "broker.tls.key_file": (
        {"broker": {"url": "mqtts://h", "tls": {"key_file": "k"}}},
        "without `cert_file`",
        {"broker": {"url": "mqtts://h", "tls": {"key_file": "k", "cert_file": "c"}}},
    ),
    "broker.url": (
        {"broker": {"url": "mqtt://h:65536"}},
        "a port from 1 to 65535",
        {"broker": {"url": "mqtt://h:65535"}},
    ),
    "broker.session_expiry_s": (
        {"broker": {"session_expiry_s": 2**32}},
        "at most 4294967295",
        {"broker": {"session_expiry_s": 2**32 - 1}},
    ),
    "node.threads": ({"node": {"threads": 1025}}, "at most 1024", {"node": {"threads": 1024}}),
    "models.m.static_batches": ({"models": {"m": MODEL}}, "onnxruntime", {"models": {"m": MODEL | {"backend": "auto"}}}),
    "pipelines.p.queue.max_frames_per_stream": (
        pipeline(queue={"max_frames_per_stream": 6, "max_frames": 5}),
        "6 is never reached: `max_frames`, for all streams together, is 5",
        pipeline(queue={"max_frames_per_stream": 5, "max_frames": 5}),
    ),
    "pipelines.p.max_payload_bytes": (
        pipeline(max_payload_bytes=2049, queue={"max_bytes": 2048}),
        "2,049 is more than `queue: max_bytes`, 2,048",
        pipeline(max_payload_bytes=2048, queue={"max_bytes": 2048}),
    ),
    "pipelines.p.queue.max_qos1_frames_per_topic": (
        pipeline(queue={"max_qos1_frames_per_topic": 256}),
        "256 is never reached: the broker sends 256 QoS 1 frames at most",
        pipeline(queue={"max_qos1_frames_per_topic": 255}),
    ),
    "pipelines.p.receive_maximum": (pipeline(qos=0, receive_maximum=9), "`qos: 0`", pipeline(receive_maximum=9)),
    "pipelines.p.if_qos_lowered": (pipeline(qos=0, if_qos_lowered="fail"), "`qos: 0`", pipeline(if_qos_lowered="fail")),
    "pipelines.p.stream.level": (
        pipeline(stream={"by": "level", "level": 3}),
        "topics of plant/+/x have levels 0 to 2, not 3",
        pipeline(stream={"by": "level", "level": 2}),
    ),
    "pipelines.p.stream.field": (
        pipeline(stream={"by": "level", "level": 1, "field": "machine"}),
        "`by: level`",
        pipeline(stream={"by": "field", "field": "machine"}),
    ),
    "pipelines.p.lanes": (pipeline(workers=2, lanes=2), "`workers: 2`", pipeline(workers=2)),
    "pipelines.p.publish.expiry_s": (
        pipeline(publish={"expiry_s": 2**32}),
        "at most 4294967295",
        pipeline(publish={"expiry_s": 2**32 - 1}),
    ),
    "pipelines.p.publish.ttl_s": (
        pipeline(publish={"durable": True, "ttl_s": 5}) | {"outbox": {"commit_every_s": 5}},
        "`outbox: commit_every_s` delays by 5 s",
        pipeline(publish={"durable": True, "ttl_s": 6}) | {"outbox": {"commit_every_s": 5}},
    ),
    "fleet.origins": (
        {"fleet": {"origins": ["https://h/x"]}},
        "without `root_file`",
        {"fleet": {"origins": ["https://h/x"], **ROOT}},
    ),
    "fleet.origins.0.token_hosts": (
        {"fleet": {"origins": [ORIGIN], **ROOT}},
        "without `credentials_file`",
        {"fleet": {"origins": [ORIGIN | {"credentials_file": "c"}], **ROOT}},
    ),
    "remote.signed_pipelines": (
        {"remote": {"signed_pipelines": True}},
        "without `fleet: root_file`",
        {"remote": {"signed_pipelines": True}, "fleet": ROOT},
    ),
    "remote.signed_may_stop": (
        pipeline() | {"remote": {"signed_may_stop": True, "keep_running": ["p"]}},
        "without `signed_pipelines: true`",
        pipeline()
        | {"remote": {"signed_may_stop": True, "signed_pipelines": True, "keep_running": ["p"]}, "fleet": ROOT},
    ),
    "remote.frames_may_leave": (
        {"remote": {"frames_may_leave": True, "commands": ["ping"]}},
        "`commands` leaves `snapshot` out",
        {"remote": {"frames_may_leave": True, "commands": ["snapshot"]}},
    ),
    "remote.limits": (
        limits(batch="fixed") | {"remote": {"limits": {"batch": "fixed"}, "unsigned_pipelines": True}},
        "`unsigned_pipelines: true`",
        limits(batch="fixed"),
    ),
    "remote.limits.batch": (
        limits(batch={"min": 257}),
        "leaves no value: the node allows 1 to 256 from outside",
        limits(batch={"min": 256}),
    ),
    "metrics.flow_timeout_s": (
        {"metrics": {"enabled": False, "flow_timeout_s": 5}},
        "`enabled: false`",
        {"metrics": {"flow_timeout_s": 5}},
    ),
    "metrics.host": ({"metrics": {"host": ""}}, "must match", {"metrics": {"host": "0.0.0.0"}}),
}  # fmt: skip

RANGES: dict[str, tuple[str, Any, str, Any]] = {
    "more than the node allows": ("batch", {"max": 257}, "1 to 256 from outside anyway", {"max": 256}),
    "less than the node allows": ("lanes", {"min": 0}, "1 to 16 from outside anyway", {"min": 1}),
    "no whole number": ("lanes", {"min": 2.2, "max": 2.8}, "leaves no value", {"min": 2.2, "max": 3}),
    "an age beyond a week": ("queue.max_age_s", {"min": 604_801}, "leaves no value", {"min": 604_800}),
    "a rate above the largest": ("queue.max_rate_per_stream", {"min": 1_000_001}, "leaves no value", {"min": 1e6}),
    "room below the largest payload": ("queue.max_bytes", {"max": 2**25 - 1}, "leaves no value", {"max": 2**25}),
}

REGION: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "group of PostgreSQL": (
        {"store": {"url": "postgresql://a@b/c", "group_access": True}},
        "`group_access` has no effect",
        {"store": {"url": "region.db", "group_access": True}},
    ),
    "events above rows": (
        {"quotas": {"events_per_day": 11, "rows_per_day": 10}},
        "`events_per_day` 11 is never reached",
        {"quotas": {"events_per_day": 10, "rows_per_day": 10}},
    ),
    "a rate that admits nothing": (
        {"quotas": {"messages_per_s": 0.009}},
        "at least 0.01",
        {"quotas": {"messages_per_s": 0.01}},
    ),
    "retention that never ends": ({"retention": {"days": float("inf")}}, "finite", {"retention": {"days": None}}),
    "a key without repository": (
        {"models": {"online_key": "k"}},
        "without `repository`",
        {"models": {"online_key": "k", "repository": "r"}},
    ),
    "an authority without places": (
        {"enrolment": {"pki": "pki"}},
        "'pki' has no effect without `places`",
        {"enrolment": {"pki": "pki", "places": "p"}},
    ),
    "more pending at a site than in all": (
        {"enrolment": {"pending": 5, "pending_per_site": 6}},
        "`pending_per_site` 6 is never reached",
        {"enrolment": {"pending": 5, "pending_per_site": 5}},
    ),
}

RULE = {"name": "may", "count": 1}
RULES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "nobody signs": ({"places": "p"}, [RULE], "without `pki`"),
    "serials of no manufacturer": ({"places": "p", "pki": "k"}, [RULE | {"serials": "s"}], "without `manufacturers`"),
    "a list, and everybody": (
        {"places": "p", "pki": "k", "manufacturers": "m"},
        [RULE | {"serials": "s", "any_serial": True}],
        "`any_serial` has no effect beside `serials`",
    ),
    "labels of a machine without claim": (
        {"places": "p", "pki": "k", "manufacturers": "m"},
        [RULE | {"serials": "s", "labels": "a=b"}],
        "the rule would approve nothing",
    ),
    "one count for two rules": ({"places": "p", "pki": "k"}, [RULE, RULE], "would share one count"),
    "labels that nobody can read": (
        {"places": "p", "pki": "k"},
        [RULE | {"labels": "((("}],
        "enrolment.rules.0.labels",
    ),
}


def written(content: dict[str, Any]) -> str:
    """Return a file; JSON is YAML, but for infinity."""
    return orjson.dumps(content).decode() if "inf" not in str(content) else str(content).replace("inf", ".inf")


@pytest.mark.parametrize("setting", CASES)
def test_a_setting_without_effect_is_refused_at_its_line(setting: str) -> None:
    void, why, within = CASES[setting]

    with pytest.raises(BadConfigFile) as caught:
        configfile.parse(written(void))
    (problem,) = [problem for problem in caught.value.problems if problem.field == setting]
    assert why in problem.message
    assert problem.line == 1
    assert problem.remedy
    configfile.parse(written(within))


@pytest.mark.parametrize("case", RANGES)
def test_a_limit_for_others_that_leaves_nothing_or_extends_nothing_is_refused(case: str) -> None:
    path, void, why, within = RANGES[case]

    with pytest.raises(BadConfigFile, match=why):
        configfile.parse(written(limits(**{path: void})))
    configfile.parse(written(limits(**{path: within})))


def test_a_limit_counts_for_whichever_pipeline_it_leaves_a_value() -> None:
    """A pipeline whose file has a batch of 500 may be changed to 300, others may not be changed at all."""
    content = limits(batch={"min": 300})
    content["pipelines"]["q"] = PIPELINE | {"batch": 500}

    configfile.parse(written(content))


@pytest.mark.parametrize("case", REGION)
def test_a_setting_of_the_region_without_effect_is_refused(case: str, tmp_path: Path) -> None:
    void, why, within = REGION[case]
    path = tmp_path / "region.yaml"
    path.write_text(written(void))

    with pytest.raises(BadConfigFile, match=why):
        region_config.load(path)
    path.write_text(written(within).replace("None", "null"))
    region_config.load(path)


@pytest.mark.parametrize("case", RULES)
def test_a_rule_of_enrolment_that_approves_nothing_or_too_much_is_refused(case: str, tmp_path: Path) -> None:
    section, rules, why = RULES[case]
    path = tmp_path / "region.yaml"
    path.write_text(written({"enrolment": section | {"rules": rules}}))

    with pytest.raises(BadConfigFile, match=why):
        region_config.load(path)


PLANS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "gate.timeout_s": (
        {"gate": {"timeout_s": 60}},
        "60 s is over before a node can succeed",
        {"gate": {"timeout_s": 61}},
    ),
    "swap.timeout_s": ({"swap": {"timeout_s": 60}}, "probation take 60 s", {"swap": {"timeout_s": 61}}),
    "swap.split_percent": (
        {"swap": {"split_percent": 10}},
        "without `split_s`",
        {"swap": {"split_percent": 10, "split_s": 1}},
    ),
    "swap.split_s": ({"swap": {"split_s": 1}}, "without `split_percent`", {"swap": {"split_percent": 1, "split_s": 1}}),
    "swap.max_disagreement": (
        {"swap": {"max_disagreement": 0.1}},
        "without `shadow_s`",
        {"swap": {"max_disagreement": 0.1, "shadow_s": 1}},
    ),
    "gate.max_silence_s": (
        {"gate": {"max_silence_s": 301, "timeout_s": 300}},
        "301 s is never reached: `timeout_s` is 300 s",
        {"gate": {"max_silence_s": 300, "timeout_s": 300}},
    ),
    "gate.slow_reports": (
        {"gate": {"slow_reports": 2, "max_slowdown": None}},
        "without `max_slowdown`",
        {"gate": {"slow_reports": 2}},
    ),
    "waves.1": ({"waves": ["5%", "5%"]}, "5% adds no node", {"waves": ["5%", "6%"]}),
}


@pytest.mark.parametrize("setting", PLANS)
def test_a_setting_of_a_rollout_without_effect_is_refused(setting: str, tmp_path: Path) -> None:
    void, why, within = PLANS[setting]
    plan = {"rollout": "r", "models": {"m": {"version": "1.0.0"}}}
    path = tmp_path / "rollout.yaml"
    path.write_text(written(plan | void).replace("None", "null"))

    with pytest.raises(BadConfigFile) as caught:
        load_plan(path)
    assert [(problem.field, why in problem.message) for problem in caught.value.problems] == [(setting, True)]
    path.write_text(written(plan | within))
    load_plan(path)

"""Subscriptions through which a node would process its own messages."""

from __future__ import annotations

import pytest

from hedgerow.errors import ConfigError
from hedgerow.topics import Address, check_feedback

NODE = Address("local", "site", "node")
OWN = "hedgerow/v1/local/site/node"


def refusal(*filters: str, **others: list[str]) -> str | None:
    """Return why a pipeline `mine` may not subscribe to these filters; None if it may."""
    try:
        check_feedback(NODE, "mine", {"mine": filters, **others})
    except ConfigError as error:
        return str(error) if error.remedy else "no remedy"
    return None


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("#", "status"),
        ("+/#", "status"),
        ("+/+/#", "status"),
        ("+/v1/#", "status"),
        ("hedgerow/#", "status"),
        ("hedgerow/v1/#", "status"),
        ("hedgerow/+/local/#", "status"),
        ("hedgerow/v1/+/site/#", "status"),
        ("hedgerow/v1/local/+/node/#", "status"),
        (f"{OWN}/#", "status"),
        ("$share/workers/#", "status"),
        ("$share/workers/hedgerow/v1/+/+/+/health", "health"),
        ("+/+/+/+/+/+", "status"),
        ("+/+/+/+/+/health", "health"),
        ("hedgerow/v1/+/+/+/health", "health"),
        ("hedgerow/v1/+/+/+/health/#", "health"),
        (f"{OWN}/status", "status"),
        (f"{OWN}/reported", "reported"),
        (f"{OWN}/desired", "desired"),
        ("+/+/+/+/+/event/+", "event/NAME"),
        (f"{OWN}/event/#", "event/NAME"),
        (f"{OWN}/event/outbox-lost", "event/NAME"),
        (f"{OWN}/command/+", "command/NAME"),
        (f"{OWN}/dead/mine", "dead/mine"),
        (f"{OWN}/dead/+", "dead/mine"),
        ("hedgerow/v1/local/site/+/dead/other", "dead/other"),
        (f"{OWN}/result/mine", "result/mine"),
        (f"{OWN}/result/mine/late", "result/mine"),
        (f"{OWN}/result/mine/#", "result/mine"),
        ("hedgerow/v1/local/site/+/result/+", "result/mine"),
        ("hedgerow/v1/+/+/+/result/#", "result/mine"),
        ("+/+/+/+/+/+/+", "event/NAME"),
        ("+/+/+/+/+/+/late", "event/NAME"),
        ("+/+/+/+/+/+/+/late", "event/NAME"),
    ],
)
def test_a_filter_that_matches_the_nodes_own_topics_is_refused(pattern: str, matched: str) -> None:
    message = refusal("plant/door", pattern, other=["plant/gate"])

    assert message is not None
    assert repr(pattern) in message
    assert message.endswith(f"{OWN}/{matched}")


@pytest.mark.parametrize(
    "pattern",
    [
        "plant/#",
        "plant/+/+/+/+/+",
        "+/door/image",
        "+/+/+",
        "+/+/+/+/+/image",
        "$share/workers/plant/#",
        "$SYS/#",
        "hedgerow",
        "hedgerow/v2/#",
        "hedgerow/v1/local/site/node",
        "hedgerow/v1/local/site/other/health",
        "hedgerow/v1/local/elsewhere/#",
        "hedgerow/v1/local/site/+/event",
        f"{OWN}/result",
        f"{OWN}/result/other",
        f"{OWN}/result/other/#",
        f"$share/workers/{OWN}/result/other",
        "hedgerow/v1/+/+/+/result/other",
        "hedgerow/v1/local/site/+/result/elsewhere",
        "hedgerow/v1/local/site/camera/dead/+",
    ],
)
def test_other_filters_and_the_results_of_another_pipeline_are_accepted(pattern: str) -> None:
    assert refusal(pattern, other=["plant/gate"]) is None


def test_pipelines_that_depend_on_each_others_results_are_refused() -> None:
    chain = {"middle": [f"{OWN}/result/last"], "last": ["plant/gate", "hedgerow/v1/local/+/node/result/mine"]}

    message = refusal(f"{OWN}/result/middle", **chain)

    assert message is not None
    assert message.endswith(f"{OWN}/result/middle")


def test_a_chain_of_pipelines_without_a_loop_is_accepted() -> None:
    assert refusal(f"{OWN}/result/middle", middle=[f"{OWN}/result/last"], last=["plant/gate"]) is None

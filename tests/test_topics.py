"""Hedgerow topics, and topic filters of MQTT."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from hedgerow.errors import ConfigError
from hedgerow.topics import (
    EVERY_NODE,
    MAX_TOPIC_BYTES,
    Address,
    Channel,
    check_feedback,
    check_filter,
    is_name,
    matches,
    parse,
    upward,
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
addresses = st.builds(Address, names, names, names | st.just(EVERY_NODE))
tails = st.lists(st.text(st.characters(exclude_characters="/+#\0", exclude_categories=["Cs"]), min_size=1), min_size=1)

WITH_TAIL = {
    Channel.EVENT,
    Channel.RESULT,
    Channel.COMMAND,
    Channel.REPLY,
    Channel.BLOB,
    Channel.DEAD,
    Channel.SERVICE,
    Channel.ENROL,
    Channel.ENROLLED,
}


@given(addresses, st.sampled_from(Channel), tails)
def test_a_topic_parses_to_its_parts(address: Address, channel: Channel, levels: list[str]) -> None:
    tail = "/".join(levels) if channel in WITH_TAIL else ""

    parsed = parse(address.topic(channel, tail))

    assert parsed == (address, channel, tail)


def test_topics_have_the_documented_form() -> None:
    node = Address("north", "plant-7", "press")

    assert node.topic(Channel.RESULT, "doors") == "hedgerow/v1/north/plant-7/press/result/doors"
    assert node.topic(Channel.HEALTH) == "hedgerow/v1/north/plant-7/press/health"
    assert node.everyone().topic(Channel.COMMAND, "ping") == "hedgerow/v1/north/plant-7/~/command/ping"
    assert str(node) == "north/plant-7/press"


@pytest.mark.parametrize(
    ("tail", "up"),
    [("up", True), (upward("region", "1"), True), ("up/x/y", True), ("uplink", False), ("1", False), ("1/up/2", False)],
)
def test_only_replies_below_up_leave_the_site(tail: str, up: bool) -> None:
    reply, event = (parse(f"hedgerow/v1/north/plant-7/press/{channel}/{tail}") for channel in ("reply", "event"))

    assert reply is not None
    assert event is not None
    assert (reply.goes_up, event.goes_up) == (up, False)


@given(addresses, st.sampled_from(Channel))
def test_a_channel_either_requires_or_forbids_a_tail(address: Address, channel: Channel) -> None:
    wrong = "" if channel in WITH_TAIL else "tail"

    with pytest.raises(ValueError, match=f"Channel {channel} (needs|takes no) tail"):
        address.topic(channel, wrong)


@given(st.text(max_size=60) | st.from_regex(r"hedgerow/v1(/[a-z~]{0,7}){0,7}", fullmatch=True))
def test_a_parsed_topic_builds_the_same_topic(topic: str) -> None:
    """So only topics that can be built are parsed."""
    parsed = parse(topic)

    assert parsed is None or parsed.address.topic(parsed.channel, parsed.tail) == topic


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "plant/line3/door/image",
        "hedgerow/v2/north/plant/press/health",
        "hedgerow/v1/north/plant/press",
        "hedgerow/v1/north/plant/press/weather",
        "hedgerow/v1/north/plant/press/health/now",
        "hedgerow/v1/north/plant/press/result",
        "hedgerow/v1/north/plant/press/result/",
        "hedgerow/v1/north/~/press/health",
        "hedgerow/v1/north//press/health",
        "hedgerow/v1/north/plant/-press/health",
        "hedgerow/v1/north/plant/+/health",
    ],
)
def test_other_topics_are_not_parsed(topic: str) -> None:
    assert parse(topic) is None


@pytest.mark.parametrize(("name", "ok"), [("a", True), ("A.b_c-9", True), ("x" * 64, True), ("x" * 65, False)])
def test_names_have_1_to_64_allowed_characters(name: str, ok: bool) -> None:
    assert is_name(name) is ok


@given(st.text(alphabet="aZ09._-", max_size=6), st.sampled_from("/+#~ \n\0é"), st.text(alphabet="aZ09._-", max_size=6))
def test_a_name_is_one_level_without_wildcards(before: str, sign: str, after: str) -> None:
    """And never means every node."""
    assert not is_name(before + sign + after)


# Few distinct levels, so that filters often match.
levels = st.lists(st.sampled_from(["", "a", "b", "$SYS", "~"]), min_size=1, max_size=5)
filter_levels = st.lists(st.sampled_from(["", "a", "b", "+", "+", "$SYS"]), min_size=1, max_size=5)


@st.composite
def filters(draw: st.DrawFn) -> str:
    parts = draw(filter_levels)
    return "/".join([*parts, "#"] if draw(st.booleans()) else parts)


@given(filters(), levels)
def test_filters_match_as_in_another_implementation(pattern: str, parts: list[str]) -> None:
    """The reference is the matcher of paho."""
    topic = "/".join(parts)
    assume(pattern)
    assume(topic)

    assert matches(pattern, topic) == topic_matches_sub(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "matched"),
    [
        # The examples of MQTT 5 §4.7.1.
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/uptime", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("$share/nodes/plant/+", "plant/door", True),
        ("$share/nodes/plant/+", "nodes/plant/door", False),
    ],
)
def test_filters_match_as_in_the_examples_of_the_specification(pattern: str, topic: str, matched: bool) -> None:
    assert matches(pattern, topic) is matched


@given(filters())
def test_a_valid_filter_is_returned(pattern: str) -> None:
    assume(pattern)

    assert check_filter(pattern) == pattern


@pytest.mark.parametrize(
    "pattern",
    ["", "a/#/b", "a#", "a/b+", "+a", "##", "x" * (MAX_TOPIC_BYTES + 1), "$share", "$share/g", "$share//a"],
)
def test_an_invalid_filter_is_explained(pattern: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_filter(pattern)

    assert "`+` matches one whole level" in caught.value.remedy or "$share/GROUP/FILTER" in caught.value.remedy
    assert len(str(caught.value)) < 200


def test_the_level_with_the_misplaced_wildcard_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^'plant/#/image' is not a topic filter: misplaced wildcard in level '#'$"):
        check_filter("plant/#/image")


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
        ("$queue/#", "status"),
        ("$exclusive/+/#", "status"),
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


@pytest.mark.parametrize(
    "control",
    ["\0", "\n", "\r", "\x1b", "\x7f", "\x85", "\u2028", "\u202e", "\ud800", "\ufdd0", "\uffff", "\U0001fffe"],
)
def test_a_filter_with_a_control_character_is_refused_by_its_number(control: str) -> None:
    """A strict broker would close the link, and a line break would add a line to an access list."""
    with pytest.raises(ConfigError, match=f"it contains U\\+{ord(control):04X}"):
        check_filter(f"plant/{control}/x")
    assert check_filter("Werk 1/Tür/温度") == "Werk 1/Tür/温度"


@pytest.mark.parametrize(
    ("topic", "present"),
    [
        ("hedgerow/v1/r/s/n/result/doors", "hedgerow/v1/r/s/n/result/doors"),
        ("hedgerow/v1/r/s/old/result/doors", "hedgerow/v1/r/s/n/result/doors"),
        ("hedgerow/v1/r/other/n/event/gap", "hedgerow/v1/r/s/n/event/gap"),
        ("hedgerow/v1/r/s/n2/result/doors", "hedgerow/v1/r/s/n/result/doors"),
        ("plant/doors", "plant/doors"),
        ("", ""),
    ],
    ids=["its own", "another name", "another site", "a name that begins alike", "not a node's", "a gap"],
)
def test_a_topic_of_a_former_name_becomes_one_of_the_present(topic: str, present: str) -> None:
    assert Address("r", "s", "n").present(topic) == present

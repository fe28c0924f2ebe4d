"""The topic grammar, and MQTT's own rules for filters."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from hedgerow.errors import ConfigError
from hedgerow.topics import EVERY_NODE, MAX_TOPIC_BYTES, Address, Channel, check_filter, is_name, matches, parse

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
addresses = st.builds(Address, names, names, names | st.just(EVERY_NODE))
tails = st.lists(st.text(st.characters(exclude_characters="/+#\0", exclude_categories=["Cs"]), min_size=1), min_size=1)

WITH_TAIL = {Channel.EVENT, Channel.RESULT, Channel.COMMAND, Channel.REPLY, Channel.BLOB, Channel.DEAD}


@given(addresses, st.sampled_from(Channel), tails)
def test_what_was_built_is_parsed_back(address: Address, channel: Channel, levels: list[str]) -> None:
    tail = "/".join(levels) if channel in WITH_TAIL else ""

    parsed = parse(address.topic(channel, tail))

    assert parsed == (address, channel, tail)


def test_a_topic_reads_as_the_design_says() -> None:
    node = Address("north", "plant-7", "press")

    assert node.topic(Channel.RESULT, "doors") == "hedgerow/v1/north/plant-7/press/result/doors"
    assert node.topic(Channel.HEALTH) == "hedgerow/v1/north/plant-7/press/health"
    assert node.everyone().topic(Channel.COMMAND, "ping") == "hedgerow/v1/north/plant-7/~/command/ping"
    assert str(node) == "north/plant-7/press"


@given(addresses, st.sampled_from(Channel))
def test_a_channel_has_a_tail_or_has_none_never_both(address: Address, channel: Channel) -> None:
    wrong = "" if channel in WITH_TAIL else "tail"

    with pytest.raises(ValueError, match=f"Channel {channel} (needs|takes no) tail"):
        address.topic(channel, wrong)


@given(st.text(max_size=60) | st.from_regex(r"hedgerow/v1(/[a-z~]{0,7}){0,7}", fullmatch=True))
def test_whatever_parses_builds_the_same_topic_again(topic: str) -> None:
    """So nothing is one of our topics that we would not have built."""
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
def test_what_is_not_ours_is_not_parsed(topic: str) -> None:
    assert parse(topic) is None


@pytest.mark.parametrize(("name", "ok"), [("a", True), ("A.b_c-9", True), ("x" * 64, True), ("x" * 65, False)])
def test_lengths_and_signs_of_names(name: str, ok: bool) -> None:
    assert is_name(name) is ok


@given(st.text(alphabet="aZ09._-", max_size=6), st.sampled_from("/+#~ \n\0é"), st.text(alphabet="aZ09._-", max_size=6))
def test_a_name_never_breaks_a_topic(before: str, sign: str, after: str) -> None:
    """A name is one level, no wildcard, and never stands for every node."""
    assert not is_name(before + sign + after)


# Few letters and many slashes, so that filters and topics meet.
levels = st.lists(st.sampled_from(["", "a", "b", "$SYS", "~"]), min_size=1, max_size=5)
filter_levels = st.lists(st.sampled_from(["", "a", "b", "+", "+", "$SYS"]), min_size=1, max_size=5)


@st.composite
def filters(draw: st.DrawFn) -> str:
    parts = draw(filter_levels)
    return "/".join([*parts, "#"] if draw(st.booleans()) else parts)


@given(filters(), levels)
def test_filters_take_in_what_another_implementation_says(pattern: str, parts: list[str]) -> None:
    """paho's matcher is the oracle, where the specification leaves no doubt."""
    topic = "/".join(parts)
    assume(pattern)
    assume(topic)

    assert matches(pattern, topic) == topic_matches_sub(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "taken"),
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
def test_the_examples_of_the_specification(pattern: str, topic: str, taken: bool) -> None:
    assert matches(pattern, topic) is taken


@given(filters())
def test_a_filter_that_is_right_is_given_back(pattern: str) -> None:
    assume(pattern)

    assert check_filter(pattern) == pattern


@pytest.mark.parametrize(
    "pattern",
    ["", "a/#/b", "a#", "a/b+", "+a", "##", "a\0", "x" * (MAX_TOPIC_BYTES + 1), "$share", "$share/g", "$share//a"],
)
def test_a_filter_that_is_wrong_is_explained(pattern: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_filter(pattern)

    assert "`+` stands for one whole level" in caught.value.remedy or "$share/GROUP/FILTER" in caught.value.remedy
    assert len(str(caught.value)) < 200


def test_the_level_that_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^'plant/#/image' is not a topic filter: level '#'$"):
        check_filter("plant/#/image")

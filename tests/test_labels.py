"""Labels and selectors: read as Kubernetes reads them, and refused with what is wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.errors import ConfigError
from hedgerow.labels import Requirement, Selector, check_labels, parse_selector

NODE = {"site": "shop-12", "hardware": "nuc", "ring": "early", "camera": ""}
_word = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,8}[a-z0-9])?", fullmatch=True)
_requirements = st.one_of(
    st.builds(Requirement, _word, st.sampled_from(["in", "notin"]), st.frozensets(_word, min_size=1, max_size=3)),
    st.builds(Requirement, _word, st.sampled_from(["present", "absent"])),
)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", True),
        ("site=shop-12", True),
        ("site==shop-12,hardware=nuc", True),
        ("site=shop-13", False),
        ("site!=shop-13", True),
        ("spare!=yes", True),
        ("hardware in (jetson, nuc)", True),
        ("hardware notin (jetson,nuc)", False),
        ("spare notin (yes)", True),
        ("camera", True),
        ("camera=", True),
        ("!camera", False),
        ("! spare , ring = early", True),
    ],
)
def test_a_selector_chooses_as_kubernetes_does(text: str, chosen: bool) -> None:
    assert parse_selector(text).matches(NODE) is chosen


@pytest.mark.parametrize(
    "text", ["site=", "site in ()", "in (a)", ",", "a,", "a b", "a=b=c", "!", "a in (b", "-a", "a=-b", "a=b c"]
)
def test_what_is_no_selector_is_refused_with_an_example(text: str) -> None:
    if text in ("site=", "site in ()"):  # the empty value is a value
        assert not parse_selector(text).matches(NODE)
        return
    with pytest.raises(ConfigError) as refused:
        parse_selector(text)

    assert refused.value.remedy


def test_a_selector_says_what_does_not_hold() -> None:
    selector = parse_selector("site=shop-12, hardware in (jetson, orin), !spare")

    assert selector.why_not(NODE) == "hardware in (jetson, orin), and the node has 'nuc'"
    assert selector.why_not(NODE | {"hardware": "orin"}) is None


@given(st.lists(_requirements, max_size=5).map(tuple))
def test_a_selector_reads_back_as_it_is_written(requirements: tuple[Requirement, ...]) -> None:
    selector = Selector(requirements)

    assert parse_selector(str(selector)) == selector


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):
        parse_selector(text).matches(NODE)


LONGEST_KEY, LONGEST_VALUE = "k" * 63, "v" * 128


@pytest.mark.parametrize(
    "labels",
    [
        {LONGEST_KEY: LONGEST_VALUE},
        {"a": ""},
        {"a": "0"},
        {"a9": "Z.-_:/+9"},
        {"0": "a"},
        {"example.com/a_b-c": "1"},
        {},
    ],
)
def test_labels_as_long_as_may_be_are_taken_as_they_are(labels: dict[str, str]) -> None:
    assert check_labels(labels) is labels


KEY_REMEDY = "Use 1 to 63 letters, digits, `.`, `_`, `-` or `/`, with a letter or digit at both ends."
VALUE_REMEDY = "Use at most 128 letters, digits, `.`, `_`, `-`, `:`, `/` or `+`, with a letter or digit at both ends."


@pytest.mark.parametrize(
    ("labels", "message", "remedy"),
    [
        ({LONGEST_KEY + "k": ""}, f"{LONGEST_KEY + 'k'!r} is no key of a label", KEY_REMEDY),
        ({"k" * 99: ""}, f"{'k' * 80!r} is no key of a label", KEY_REMEDY),
        ({"a:b": ""}, "'a:b' is no key of a label", KEY_REMEDY),
        ({"a-": ""}, "'a-' is no key of a label", KEY_REMEDY),
        ({"a": LONGEST_VALUE + "v"}, f"{'v' * 80!r} is no value of a label (a)", VALUE_REMEDY),
        ({"a": "b-"}, "'b-' is no value of a label (a)", VALUE_REMEDY),
        ({"a": "b", "c": "-"}, "'-' is no value of a label (c)", VALUE_REMEDY),
    ],
)
def test_a_label_is_refused_with_the_rule_it_breaks(labels: dict[str, str], message: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_labels(labels)

    assert (str(refused.value), refused.value.remedy) == (message, remedy)


@pytest.mark.parametrize(
    ("text", "requirements"),
    [
        ("", []),
        ("  ", []),
        ("a", [Requirement("a", "present")]),
        ("!a", [Requirement("a", "absent")]),
        ("a=", [Requirement("a", "in", frozenset({""}))]),
        ("a=b", [Requirement("a", "in", frozenset({"b"}))]),
        ("a == b ", [Requirement("a", "in", frozenset({"b"}))]),
        ("a!=b", [Requirement("a", "notin", frozenset({"b"}))]),
        ("a in(b)", [Requirement("a", "in", frozenset({"b"}))]),
        ("a notin ( b , c )", [Requirement("a", "notin", frozenset({"b", "c"}))]),
        (
            "a, !b ,c=d",
            [Requirement("a", "present"), Requirement("b", "absent"), Requirement("c", "in", frozenset({"d"}))],
        ),
    ],
)
def test_a_selector_is_read_part_by_part(text: str, requirements: list[Requirement]) -> None:
    assert parse_selector(text) == Selector(tuple(requirements))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=b, c d", "'a=b, c d' is no label selector, from ' c d' on"),
        (",", "',' is no label selector, from ',' on"),
        ("a, ", "'a, ' is no label selector: nothing follows the last comma"),
        ("a=b,", "'a=b,' is no label selector: nothing follows the last comma"),
        ("a=-", "'a=-' is no label selector: '-' is no value of a label (a)"),
        ("-=a", "'-=a' is no label selector: '-' is no key of a label"),
        ("!-", "'!-' is no label selector: '-' is no key of a label"),
        ("a in (b, -)", "'a in (b, -)' is no label selector: '-' is no value of a label (a)"),
    ],
)
def test_a_selector_is_refused_with_where_it_goes_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_selector(text)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("camera, spare", "spare, and the node has no such label"),
        ("!camera", "!camera, and the node has ''"),
        ("ring!=early", "ring!=early, and the node has 'early'"),
        ("ring notin (late, early)", "ring notin (early, late), and the node has 'early'"),
        ("site=x", "site=x, and the node has 'shop-12'"),
        ("site=shop-12, ring", None),
    ],
)
def test_the_first_part_that_does_not_hold_is_named_as_it_would_be_written(text: str, why: str | None) -> None:
    assert parse_selector(text).why_not(NODE) == why


@pytest.mark.parametrize("labels", [{"": "a"}, {"a b": "c"}, {"a": "b\n"}, {"a": "x" * 200}, {"-a": "b"}])
def test_labels_that_would_break_a_selector_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        check_labels(labels)

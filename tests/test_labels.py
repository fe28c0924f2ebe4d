"""Labels and selectors: parsed as in Kubernetes, and refused with an explanation."""

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
    ("text", "matches"),
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
def test_a_selector_matches_as_in_kubernetes(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(NODE) is matches


@pytest.mark.parametrize(
    "text", ["site=", "site in ()", "in (a)", ",", "a,", "a b", "a=b=c", "!", "a in (b", "-a", "a=-b", "a=b c"]
)
def test_an_invalid_selector_is_refused_with_an_example(text: str) -> None:
    if text in ("site=", "site in ()"):  # the empty string is a valid value
        assert not parse_selector(text).matches(NODE)
        return
    with pytest.raises(ConfigError) as refused:
        parse_selector(text)

    assert refused.value.remedy


def test_a_selector_names_the_requirement_that_is_not_met() -> None:
    selector = parse_selector("site=shop-12, hardware in (jetson, orin), !spare")

    assert selector.why_not(NODE) == "hardware in (jetson, orin), but the node has 'nuc'"
    assert selector.why_not(NODE | {"hardware": "orin"}) is None


@given(st.lists(_requirements, max_size=5).map(tuple))
def test_a_formatted_selector_parses_to_the_same_selector(requirements: tuple[Requirement, ...]) -> None:
    selector = Selector(requirements)

    assert parse_selector(str(selector)) == selector


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
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
def test_labels_at_the_limits_are_returned_unchanged(labels: dict[str, str]) -> None:
    assert check_labels(labels) is labels


KEY_REMEDY = "Use 1 to 63 letters, digits, `.`, `_`, `-` or `/`, beginning and ending with a letter or digit."
VALUE_REMEDY = (
    "Use at most 128 letters, digits, `.`, `_`, `-`, `:`, `/` or `+`, beginning and ending with a letter or digit."
)


@pytest.mark.parametrize(
    ("labels", "message", "remedy"),
    [
        ({LONGEST_KEY + "k": ""}, f"{LONGEST_KEY + 'k'!r} is not a valid label key", KEY_REMEDY),
        ({"k" * 99: ""}, f"{'k' * 80!r} is not a valid label key", KEY_REMEDY),
        ({"a:b": ""}, "'a:b' is not a valid label key", KEY_REMEDY),
        ({"a-": ""}, "'a-' is not a valid label key", KEY_REMEDY),
        ({"a": LONGEST_VALUE + "v"}, f"{'v' * 80!r} is not a valid value of label a", VALUE_REMEDY),
        ({"a": "b-"}, "'b-' is not a valid value of label a", VALUE_REMEDY),
        ({"a": "b", "c": "-"}, "'-' is not a valid value of label c", VALUE_REMEDY),
    ],
)
def test_an_invalid_label_is_refused_with_the_rule(labels: dict[str, str], message: str, remedy: str) -> None:
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
def test_a_selector_is_parsed_into_requirements(text: str, requirements: list[Requirement]) -> None:
    assert parse_selector(text) == Selector(tuple(requirements))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=b, c d", "'a=b, c d' is not a label selector: syntax error at ' c d'"),
        (",", "',' is not a label selector: syntax error at ','"),
        ("a, ", "'a, ' is not a label selector: it ends with a comma"),
        ("a=b,", "'a=b,' is not a label selector: it ends with a comma"),
        ("a=-", "'a=-' is not a label selector: '-' is not a valid value of label a"),
        ("-=a", "'-=a' is not a label selector: '-' is not a valid label key"),
        ("!-", "'!-' is not a label selector: '-' is not a valid label key"),
        ("a in (b, -)", "'a in (b, -)' is not a label selector: '-' is not a valid value of label a"),
    ],
)
def test_an_invalid_selector_is_refused_with_the_position(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_selector(text)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("camera, spare", "spare, but the node has no such label"),
        ("!camera", "!camera, but the node has ''"),
        ("ring!=early", "ring!=early, but the node has 'early'"),
        ("ring notin (late, early)", "ring notin (early, late), but the node has 'early'"),
        ("site=x", "site=x, but the node has 'shop-12'"),
        ("site=shop-12, ring", None),
    ],
)
def test_the_first_requirement_not_met_is_named_in_normal_form(text: str, why: str | None) -> None:
    assert parse_selector(text).why_not(NODE) == why


@pytest.mark.parametrize("labels", [{"": "a"}, {"a b": "c"}, {"a": "b\n"}, {"a": "x" * 200}, {"-a": "b"}])
def test_labels_that_a_selector_cannot_express_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        check_labels(labels)

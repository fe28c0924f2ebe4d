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


@pytest.mark.parametrize("labels", [{"": "a"}, {"a b": "c"}, {"a": "b\n"}, {"a": "x" * 200}, {"-a": "b"}])
def test_labels_that_would_break_a_selector_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        check_labels(labels)

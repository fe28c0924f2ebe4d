"""Which texts of senders are accepted, and how all others are shown."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.properties import encode_text
from hedgerow.text import not_in_mqtt, refusal, visible, visible_lines

BROKERS_CLOSE = [
    "\0",
    "\t",
    "\n",
    "\x1b",
    "\x1f",
    "\x7f",
    "\x80",
    "\x9b",
    "\x9f",
    "\ud800",
    "\udfff",
    "\ufdd0",
    "\ufdef",
]
BROKERS_CLOSE += ["\ufffe", "\uffff", "\U0001fffe", "\U0010ffff"]
ONLY_LINES = ["\ufeff", "\u2028", "\u2029", "\u202a", "\u202e", "\u2066", "\u2069"]
HARMLESS = [
    "pumpe 3/Ö",
    "模型",
    "\u00a0",
    "\u200d",
    "\ue000",
    "\U0001f3ed",
    "a+b#c",
    "\\x1b",
    "\ufdcf",
    "\ufdf0",
]


@pytest.mark.parametrize("char", BROKERS_CLOSE, ids=ascii)
def test_what_brokers_close_the_link_for_is_refused_from_senders_and_never_sent(char: str) -> None:
    assert f"U+{ord(char):04X}" in (refusal(f"a{char}b") or "")
    assert not_in_mqtt(f"a{char}b")
    with pytest.raises(ValueError, match="not an MQTT string"):
        encode_text(f"a{char}b")


@pytest.mark.parametrize("char", ONLY_LINES, ids=ascii)
def test_what_turns_or_breaks_a_line_is_refused_from_senders(char: str) -> None:
    assert refusal(f"a{char}b")
    assert not_in_mqtt(f"a{char}b") is None
    assert visible(char) == f"\\u{ord(char):04x}"


@pytest.mark.parametrize("text", HARMLESS, ids=ascii)
def test_all_other_texts_are_accepted(text: str) -> None:
    assert refusal(text) is None
    assert encode_text(text)[2:] == text.encode()


def test_the_quick_test_overlooks_no_character() -> None:
    """`isprintable` stands in for the search where it can."""
    for code in range(sys.maxunicode + 1):
        if chr(code).isprintable():
            assert refusal(f"{chr(code)}\u200d") is None
            assert visible(f"{chr(code)}\x1b") == f"{chr(code)}\\x1b"


@given(st.text(st.characters()))
def test_a_text_that_is_shown_controls_no_terminal(text: str) -> None:
    assert refusal(visible(text)) is None
    assert refusal(visible_lines(text).replace("\n", "").replace("\t", "")) is None
    assert visible_lines(text).count("\n") == text.count("\n")


def test_characters_are_shown_by_their_code() -> None:
    assert visible("\x1b[2J\x9b\u202e\U0001ffff\n") == "\\x1b[2J\\x9b\\u202e\\U0001ffff\\x0a"
    assert visible_lines("a\n\tb\r") == "a\n\tb\\x0d"

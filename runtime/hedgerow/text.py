"""Decides which texts may become MQTT strings, names and lines of a log or terminal, and shows all others visibly.

Two sets of characters, from narrow to wide:

- *Not in MQTT*: NUL, the C0 and C1 controls, DEL, surrogates and non-characters (MQTT 5 §1.5.4). Mosquitto closes the link of
  whoever sends one in a topic or property.
- *Not from senders*: these, and what turns or breaks a line: bidirectional overrides, embeddings and isolates (UAX #9), U+2028
  and U+2029. So is U+FEFF: MQTT allows it, but widespread clients (paho for Python) end their thread over one in a property.
"""

from __future__ import annotations

import json
import re
from typing import Final
from unicodedata import category

_NON_CHARACTERS: Final = "\ufdd0-\ufdef" + "".join(
    chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17)
)
_NOT_IN_MQTT: Final = "\x00-\x1f\x7f-\x9f\ud800-\udfff" + _NON_CHARACTERS
_MQTT: Final = re.compile(f"[{_NOT_IN_MQTT}]")
_SENDERS: Final = re.compile(f"[{_NOT_IN_MQTT}\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def not_in_mqtt(text: str) -> str | None:
    """Return why a broker may close the link over this text; None: it won't."""
    if text.isprintable():  # a tenth of the time that a search takes; all of the set are not printable
        return None
    found = _MQTT.search(text)
    return None if found is None else f"it contains {name_of(found[0])}"


def refusal(text: str) -> str | None:
    """Return which character makes a text that a sender picked unacceptable; None: none does."""
    if text.isprintable():
        return None
    found = _SENDERS.search(text)
    return None if found is None else f"it contains {name_of(found[0])}"


def name_of(char: str) -> str:
    """Return how to name a character in a message: `U+001B`."""
    return f"U+{ord(char):04X}"


def visible(text: str) -> str:
    r"""Return a text on one line, with everything that is not printable as an escape sequence: `\x1b`, `\u202e`."""
    return text if text.isprintable() else "".join(map(_visible, text))


def visible_lines(text: str) -> str:
    """Return a text likewise, but with its line feeds and tabs."""
    return text if text.isprintable() else "".join(char if char in "\n\t" else _visible(char) for char in text)


def visible_json(document: str) -> str:
    """Return a JSON document, equal in content, with escape sequences for what JSON allows in strings but a terminal acts upon."""
    return _SENDERS.sub(lambda found: "\n" if found[0] == "\n" else json.dumps(found[0])[1:-1], document)


def _visible(char: str) -> str:
    if category(char)[0] != "C" and category(char) not in ("Zl", "Zp"):
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

"""Encodes properties as a hostile or careless peer does: without the checks of our own client."""

from __future__ import annotations

from collections.abc import Iterable

from hedgerow.bus.properties import Property, encode_binary


def text(value: str) -> bytes:
    """Encode a string as MQTT does, whatever is in it."""
    return encode_binary(value.encode(errors="surrogatepass"))


def properties(pairs: Iterable[tuple[Property, str | tuple[str, str]]]) -> bytes:
    """Encode properties that are texts."""
    parts = ((kind, value if isinstance(value, tuple) else (value,)) for kind, value in pairs)
    return b"".join(bytes([kind]) + b"".join(map(text, values)) for kind, values in parts)

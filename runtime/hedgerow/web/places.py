"""Origins of URLs, and how far an address is from the public network. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

import urllib3
from urllib3.util import parse_url

_IPV4_IN_IPV6: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses behind NAT64 (RFC 6052)."""
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that IANA has allocated. Beyond are site-local addresses, NAT64 of a network of one's own, and other ways to write IPv4 ones."""
_LABEL: Final = "[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Host whose last label is a number: what resolvers and browsers read as an IPv4 address (WHATWG URL §3.5)."""


class WebOrigin(NamedTuple):
    """Scheme, host and port: what credentials are bound to (RFC 6454)."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> WebOrigin:
    """Return the origin of an HTTPS URL, as the HTTP library parses it. Raises: ValueError: why it is refused.

    A host is a name, or an address as standards write it. `127.1`, `2130706433`, `0x7f.1` and `0177.0.0.1` are addresses too, but
    which ones depends on who resolves them.
    """
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise ValueError("which is not a valid URL")
    try:
        parts = parse_url(url)
    except urllib3.exceptions.LocationParseError as error:
        raise ValueError("which is not a valid URL") from error
    if parts.scheme != "https":
        raise ValueError("which is not HTTPS")
    if parts.auth is not None:
        raise ValueError("which has a user name in it")
    if not parts.host:
        raise ValueError("which names no host")
    host = parts.host.strip("[]").lower().removesuffix(".")
    if not is_address(host):
        if _NUMBER.fullmatch(host):
            raise ValueError("which writes an address in an unusual way")
        if not _NAME.fullmatch(host):
            raise ValueError("whose host is neither a name nor an address")
    return WebOrigin(parts.scheme, host, parts.port or 443)


def origin_of_host(host: str) -> WebOrigin:
    """Return the origin of a configured `HOST[:PORT]`. Raises: ValueError: it is not one."""
    if not host or any(mark in host for mark in "/?#@"):
        raise ValueError("which is not HOST or HOST:PORT")
    return origin_of(f"https://{host}")


def is_public(address: str) -> bool:
    """Return whether an IP address is on the public network: neither this machine, nor a private or special network."""
    found = _parsed(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _IPV4_IN_IPV6:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found not in _GLOBAL_UNICAST:
            return False
    return found.is_global and not found.is_multicast


def same_address(one: str, other: str) -> bool:
    """Return whether two texts are the same IP address."""
    return _parsed(one) == _parsed(other)


def is_address(host: str) -> bool:
    """Return whether a host is an IP address rather than a name."""
    try:
        _parsed(host)
    except ValueError:
        return False
    return True


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an address; of IPv6, without its zone. Raises: ValueError: it is none."""
    return ipaddress.ip_address(address.partition("%")[0] if ":" in address else address)

"""Origins of URLs, and how far an address is from the public network. Pure."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

import urllib3
from urllib3.util import parse_url

_IPV4_IN_IPV6: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses behind NAT64 (RFC 6052)."""
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that IANA has allocated. Beyond are site-local addresses, NAT64 of a network of one's own, and other ways to write IPv4 ones."""


class WebOrigin(NamedTuple):
    """Scheme, host and port: what credentials are bound to (RFC 6454)."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> WebOrigin:
    """Return the origin of an HTTPS URL, as the HTTP library parses it. Raises: ValueError: why it is refused."""
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
    return WebOrigin(parts.scheme, parts.host.strip("[]").lower().rstrip("."), parts.port or 443)


def origin_of_host(host: str) -> WebOrigin:
    """Return the origin of a configured `HOST[:PORT]`. Raises: ValueError: it is not one."""
    if not host or any(mark in host for mark in "/?#@"):
        raise ValueError("which is not HOST or HOST:PORT")
    return origin_of(f"https://{host}")


def is_public(address: str) -> bool:
    """Return whether an IP address is on the public network: neither this machine, nor a private or special network."""
    found = ipaddress.ip_address(address.partition("%")[0])
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
    return ipaddress.ip_address(one.partition("%")[0]) == ipaddress.ip_address(other.partition("%")[0])


def is_address(host: str) -> bool:
    """Return whether a host is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True

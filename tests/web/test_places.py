"""Origins of URLs, and which addresses are public."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hedgerow.web.errors import RedirectRefused
from hedgerow.web.exchange import Exchange
from hedgerow.web.places import WebOrigin, is_address, is_public, origin_of, origin_of_host


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://models.example", ("https", "models.example", 443)),
        ("https://MODELS.example.:443/a?b#c", ("https", "models.example", 443)),
        ("https://models.example:8443/", ("https", "models.example", 8443)),
        ("https://[2001:DB8::1]:8443/a", ("https", "2001:db8::1", 8443)),
        ("HTTPS://models.example/a@b", ("https", "models.example", 443)),
        ("https://a.example/?https://b.example", ("https", "a.example", 443)),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: tuple[str, str, int]) -> None:
    assert origin_of(url) == WebOrigin(*origin)


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example/",
        "file:///etc/passwd",
        "ftp://models.example/",
        "//models.example/",
        "/relative",
        "",
        "https://",
        "https:///path",
        "https://user@models.example/",
        "https://user:word@models.example/",
        "https://a.example\\@b.example/",
        "https://a.example/\r\nHost: b.example",
        "https://a.example/ b",
        "https://ä.example/",
        "https://a.example:port/",
        "https://a.example:99999/",
        "https://[::1/",
    ],
)
def test_what_is_no_plain_https_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="which "):
        origin_of(url)


@pytest.mark.parametrize("host", ["", "a/b", "a?b", "a#b", "user@a", "a b", "https://a"])
def test_a_configured_host_is_a_host_with_or_without_a_port(host: str) -> None:
    assert origin_of_host("auth.docker.io") == WebOrigin("https", "auth.docker.io", 443)
    assert origin_of_host("[2001:db8::1]:5000") == WebOrigin("https", "2001:db8::1", 5000)
    with pytest.raises(ValueError, match="which "):
        origin_of_host(host)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "224.0.0.1", "ff02::1", "240.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001::1",
        "::127.0.0.1", "::10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b:1::a00:1", "fec0::1", "5f00::1", "4000::1", "e000::1",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_of_private_and_special_networks_are_not_public(address: str) -> None:
    assert not is_public(address)


LOOPBACK = [
    "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0X7F.0.0.1", "0177.0.0.1", "017700000001", "127.0.0.01",
    "127.0.0.1.", "127.0.0.0x1", "0x7f.0.1", "127.000.000.001",
]  # fmt: skip
"""How `inet_aton`, and so most resolvers, let one write 127.0.0.1."""


@pytest.mark.parametrize("host", [*LOOPBACK, "0", "0x0", "10.1", "3232235777", "0xa9fea9fe", "0x8.0x8.0x8.0x8"])
def test_an_address_in_another_notation_is_refused_or_seen_as_one(host: str) -> None:
    """As the system's parser reads it, which is another implementation."""
    expected = socket.inet_ntoa(socket.inet_aton(host.removesuffix(".")))
    seen = None
    with contextlib.suppress(ValueError):
        seen = origin_of(f"https://{host}:8443/a").host

    assert seen in (None, expected)


@given(some.lists(some.from_regex(r"\A(0[xX]?)?[0-9a-fA-F]{0,11}\Z"), min_size=1, max_size=5).map(".".join))
def test_nothing_that_the_system_reads_as_an_address_passes_for_a_name(host: str) -> None:
    try:
        system = socket.inet_ntoa(socket.inet_aton(host))
        origin = origin_of(f"https://{host}/")
    except (OSError, ValueError):
        return
    assert origin.host == system


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_nothing_that_curl_reads_as_this_machine_passes_for_a_name() -> None:
    """It says where it connects: nothing listens on port 1 of this machine."""
    urls = [f"https://{host}:1/" for host in [*LOOPBACK, "[::ffff:127.0.0.1]", "[::1]", "[0:0:0:0:0:ffff:7f00:1]"]]
    said = subprocess.run(
        ["curl", "--verbose", "--silent", "--noproxy", "*", "--max-time", "5", *urls],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    tried = re.findall(r"\*\s+Trying \[?([0-9a-f.:]+?)\]?:1\.\.\.", said.stderr)
    assert len(tried) >= len(urls) - 1, said.stderr
    assert not any(is_public(address) for address in tried)
    for url in urls:
        with contextlib.suppress(ValueError):
            assert not is_public(origin_of(url).host)


@pytest.mark.parametrize(
    "host",
    ["a..b", "localhost..", "a b.example", "a;b", "a,b", "-a.example", "a-.example", "1.2.3.4.5",
     "models.example.0x7f", "[v1.a]", "[1.2.3.4]", "!", "a%00.example", "0x", "256.1.1.1", "127.0.0.1%25a"],
)  # fmt: skip
def test_a_host_that_is_neither_a_name_nor_an_address_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"which |whose "):
        origin_of(f"https://{host}/")


@pytest.mark.parametrize(
    "host", ["[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[::1]", "[::1%25lo]", "[fe80::1%25eth0]"]
)
def test_this_machine_in_ipv6_is_an_address_that_is_not_public(host: str) -> None:
    origin = origin_of(f"https://{host}/")

    assert is_address(origin.host)
    assert not is_public(origin.host)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost.", "LOCALHOST", "a.localhost", "printer", "nas.local", "evil.example"]
)
def test_behind_a_proxy_a_redirect_to_a_name_is_refused_unless_it_is_configured(host: str) -> None:
    """Only the proxy knows its address. A configured one, and an address that can be checked, may be reached."""
    exchange = Exchange("https://models.example/a", 0, proxied=True)
    exchange.redirected(anywhere=True)
    exchange.check_host(origin_of(f"https://{host}/").host)
    exchange.redirected(anywhere=False)
    exchange.check_host("93.184.216.34")

    with pytest.raises(RedirectRefused, match="only the proxy knows") as refused:
        exchange.check_host(origin_of(f"https://{host}/").host)
    assert "redirect_hosts" in refused.value.remedy
    with pytest.raises(RedirectRefused, match="not a public address"):
        exchange.check_host("127.0.0.1")

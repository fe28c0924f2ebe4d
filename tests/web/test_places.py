"""Origins of URLs, and which addresses are public."""

from __future__ import annotations

import pytest

from hedgerow.web.places import WebOrigin, is_public, origin_of, origin_of_host


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

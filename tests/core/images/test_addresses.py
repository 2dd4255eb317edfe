from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.images.addresses import (
    MAX_URL_CHARS,
    FetchPolicy,
    WebAddress,
    is_public,
    redirected,
    require_reachable,
    web_address,
)
from mlx_serving.errors import ImageFetchFailed

WHERE = "messages[0].content[0].image_url.url"
ON = FetchPolicy(enabled=True)

PRIVATE = (
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:0808:0808::1", "3fff::1", "5f00::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "localhost", "", "1.2.3",
)  # fmt: skip
PUBLIC = (
    "8.8.8.8",
    "93.184.216.34",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
)


@pytest.mark.parametrize("address", PRIVATE)
def test_what_only_this_network_can_reach_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_everybody_can_reach_is_public(address: str) -> None:
    assert is_public(address)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_the_standard_library_calls_private_is_never_public(address: object) -> None:
    import ipaddress

    found = ipaddress.ip_address(str(address))
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_private or found.is_loopback or found.is_link_local or found.is_multicast or found.is_reserved:
        nat64 = isinstance(found, ipaddress.IPv6Address) and found in ipaddress.IPv6Network("64:ff9b::/96")
        assert nat64 or not is_public(str(found))


def test_a_url_says_where_to_and_what_for() -> None:
    assert web_address("https://Example.org/a/b.png?x=1#part", ON, WHERE) == WebAddress(
        True, "example.org", 443, "/a/b.png?x=1"
    )
    plain = web_address("http://example.org.:80", ON, WHERE)
    assert (plain.secure, plain.host, plain.port, plain.path) == (False, "example.org", 80, "/")
    assert plain.host_header == "example.org"
    six = web_address("http://[2606:4700::1111]/x", ON, WHERE)
    assert (six.host, six.host_header, six.url) == (
        "2606:4700::1111",
        "[2606:4700::1111]",
        "http://[2606:4700::1111]/x",
    )
    other = web_address("https://example.org:80/", ON, WHERE)
    assert other.host_header == "example.org:80"
    assert other.url == "https://example.org:80/"


def test_nothing_is_fetched_unless_it_is_switched_on() -> None:
    with pytest.raises(ImageFetchFailed, match=r"images\.fetch\.enabled") as raised:
        web_address("https://example.org/secret", FetchPolicy(), WHERE)
    assert raised.value.field == WHERE
    assert "secret" not in str(raised.value.to_object())


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("ftp://example.org/secret", "scheme http or https, got 'ftp'"),
        ("gopher://example.org/secret", "scheme"),
        ("file:///secret", "scheme"),
        ("//example.org/secret", "scheme"),
        ("https://user:secret@example.org/", "without a user"),
        ("https://@example.org/secret", "without a user"),
        ("https:///secret", "without a host"),
        ("https://%31%32%37.0.0.1/secret", "without a host"),
        ("https://" + "a" * 254 + "/secret", "without a host"),
        ("https://example.org:22/secret", "may name the ports 80 443, got 22"),
        ("https://example.org:0/secret", "got 0"),
        ("https://example.org:99999/secret", "is no URL"),
        ("https://[::1/secret", "is no URL"),
        ("https://exa mple.org/secret", "percent-encoded"),
        ("https://example.org/\r\nsecret", "percent-encoded"),
        ("https://example.org\\@127.0.0.1/secret", "percent-encoded"),
        ("https://ex\u00e4mple.org/secret", "percent-encoded"),
        ("https://example.org/" + "secret" * MAX_URL_CHARS, "at most 8192 characters"),
    ],
)
def test_a_url_that_may_not_be_fetched_is_refused_without_being_quoted(url: str, rule: str) -> None:
    with pytest.raises(ImageFetchFailed) as raised:
        web_address(url, ON, WHERE)
    assert rule in raised.value.message
    assert raised.value.field == WHERE
    assert "secret" not in str(raised.value.to_object())


def test_hosts_can_be_limited() -> None:
    policy = FetchPolicy(enabled=True, allowed_hosts="Images.example.org *.cdn.example.org")
    for host in ("images.example.org", "a.cdn.example.org", "a.b.cdn.example.org"):
        assert web_address(f"https://{host}/", policy, WHERE).host == host
    for host in ("example.org", "cdn.example.org", "evilcdn.example.org", "images.example.org.evil.net"):
        with pytest.raises(ImageFetchFailed, match="does not fetch from"):
            web_address(f"https://{host}/", policy, WHERE)


def test_a_redirect_is_checked_like_a_url() -> None:
    start = web_address("https://example.org/a/b", ON, WHERE)
    assert redirected(start, "../c?d", ON, WHERE).url == "https://example.org/c?d"
    assert redirected(start, "//other.org/", ON, WHERE).url == "https://other.org/"
    for location, rule in (
        ("http://example.org/", "from https to http"),
        ("file:///etc/passwd", "scheme"),
        ("https://u:p@example.org/", "user"),
        ("//[", "what is no URL"),
    ):
        with pytest.raises(ImageFetchFailed, match=rule):
            redirected(start, location, ON, WHERE)
    plain = web_address("http://example.org/", ON, WHERE)
    assert redirected(plain, "https://example.org/", ON, WHERE).secure


def test_an_address_that_is_not_public_is_reached_only_where_it_is_allowed() -> None:
    address = web_address("http://example.org/", ON, WHERE)
    require_reachable(address, "8.8.8.8", ON, WHERE)
    with pytest.raises(ImageFetchFailed, match=r"example\.org, whose address is not public") as raised:
        require_reachable(address, "10.1.2.3", ON, WHERE)
    assert "10.1.2.3" not in raised.value.message  # nobody learns what the names of a network mean
    inside = FetchPolicy(enabled=True, allowed_networks="10.1.0.0/16 fd00::/8")
    require_reachable(address, "10.1.2.3", inside, WHERE)
    require_reachable(address, "fd00::1", inside, WHERE)
    for other in ("10.2.0.1", "fe80::1", "nonsense"):
        with pytest.raises(ImageFetchFailed):
            require_reachable(address, other, inside, WHERE)

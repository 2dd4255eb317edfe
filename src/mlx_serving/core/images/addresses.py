"""Which URLs may be fetched for somebody else: nothing that only this machine, or its network, can reach.

A URL is checked when it comes and at every redirect; every address that its host has is checked before one of them is
connected to.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit

from mlx_serving.errors import ImageFetchFailed

MAX_URL_CHARS = 8192

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
# What the registries say is not for the public Internet. 168.63.129.16 is a cloud's own host, under a public address.
_CLOSED_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
            "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
            "168.63.129.16/32",
        ),
    )
)  # fmt: skip
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Whether and how pictures are fetched. `allowed_hosts` and `allowed_networks` are separated by spaces: hosts, of
    which `*.example.org` are all below it, None is any; networks that may be connected to though they are not public.
    `allowed_ports` are numbers, separated by spaces. `timeout_s` is for all hops together."""

    enabled: bool = False
    allowed_hosts: str | None = None
    allowed_ports: str = "80 443"
    allowed_networks: str | None = None
    max_redirects: int = 3
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A URL that may be asked for, as far as it tells. `path` is what the server is asked for."""

    secure: bool
    host: str
    port: int
    path: str = field(repr=False)

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.secure else "http"] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host_header}{self.path}"


def web_address(url: str, policy: FetchPolicy, where: str) -> WebAddress:
    """Raises `ImageFetchFailed` for a URL that may not be fetched. Messages quote no more of it than its host."""
    if not policy.enabled:
        raise ImageFetchFailed(
            f"{where} is a URL, and this server fetches none (images.fetch.enabled): send the picture itself, as a "
            "data URI",
            field=where,
        )
    if len(url) > MAX_URL_CHARS:
        raise _refused(where, f"may have at most {MAX_URL_CHARS} characters, got {len(url)}", limit=MAX_URL_CHARS)
    if not url.isascii() or any(char <= " " or char in '\x7f\\"<>^`{|}' for char in url):
        raise _refused(where, "is a URL with characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused(where, "is no URL") from None
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
    if scheme not in _PORTS:
        raise _refused(where, f"must be a URL of the scheme http or https, got {scheme[:20]!r}", limit="http, https")
    if "@" in parts.netloc:
        raise _refused(where, "must be a URL without a user or password")
    if not host or len(host) > 253 or "%" in host:
        raise _refused(where, "is a URL without a host")
    if port is None:
        port = _PORTS[scheme]
    if str(port) not in policy.allowed_ports.split():
        raise _refused(where, f"may name the ports {policy.allowed_ports}, got {port}", limit=policy.allowed_ports)
    if not _is_allowed(host, policy.allowed_hosts):
        raise _refused(where, f"names the host {host}, which this server does not fetch from")
    return WebAddress(scheme == "https", host, port, _path(parts))


def redirected(address: WebAddress, location: str, policy: FetchPolicy, where: str) -> WebAddress:
    """Where a redirect leads. Raises `ImageFetchFailed`, also for one from https to http."""
    try:
        target = urljoin(address.url, location)
    except ValueError:
        raise _refused(where, f"was redirected by {address.host} to what is no URL") from None
    following = web_address(target, policy, where)
    if address.secure and not following.secure:
        raise _refused(where, f"was redirected by {address.host} from https to http")
    return following


def require_reachable(address: WebAddress, found: str, policy: FetchPolicy, where: str) -> None:
    """Raises `ImageFetchFailed` if the address `found` for a host is none that the public can reach, and none of the
    networks that are allowed nevertheless."""
    if not is_public(found) and not _is_in(found, policy.allowed_networks):
        raise _refused(
            where, f"names the host {address.host}, whose address is not public or cannot be told; it is not fetched"
        )


def is_public(address: str) -> bool:
    """Whether an IP address, as numbers, is one that the whole Internet can reach. Of one that carries an IPv4 address,
    that one counts."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        carried = found.ipv4_mapped
        if carried is None and found in _NAT64:
            carried = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if carried is None:
            return found in _OPEN_V6 and not any(found in network for network in _CLOSED_V6)
        found = carried
    return not any(found in network for network in _CLOSED_V4)


def networks_of(text: str | None) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Raises ValueError for what is no network."""
    return [ipaddress.ip_network(each) for each in (text or "").split()]


def _is_in(address: str, networks: str | None) -> bool:
    try:
        found: _Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks_of(networks))


def _is_allowed(host: str, allowed: str | None) -> bool:
    if allowed is None:
        return True
    return any(host.endswith(name[1:]) if name.startswith("*.") else host == name for name in allowed.lower().split())


def _path(parts: SplitResult) -> str:
    path = parts.path or "/"
    return f"{path}?{parts.query}" if parts.query else path


def _refused(where: str, rule: str, limit: object = None) -> ImageFetchFailed:
    return ImageFetchFailed(f"{where} {rule}", field=where, limit=limit)

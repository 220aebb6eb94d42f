"""Where requests may go: http(s) to named hosts, never to link-local or cloud metadata addresses."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import inet_aton
from typing import TypeAlias
from urllib.parse import urlsplit

from aiquery_serving.errors import ConfigurationError

Address: TypeAlias = IPv4Address | IPv6Address

_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})
#: Metadata services that live outside the link-local ranges.
_METADATA_ADDRESSES = frozenset(
    ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # Amazon, over IPv6
    )
)
#: What gateways between the two protocols put before an IPv4 address.
_NAT64 = ip_network("64:ff9b::/96")


def checked(url: str) -> str:
    """Return the host of a provider's URL.

    Raises:
        ConfigurationError: It is not http(s), carries a password, or points at a link-local or
            metadata address.
    """
    # What parsers read in different ways would be judged here as one host and reached as another.
    if not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
        raise ConfigurationError("A provider's URL holds a character that URLs do not have.")
    try:
        parsed = urlsplit(url)
        host, _ = parsed.hostname, parsed.port
    except ValueError as error:
        raise ConfigurationError(f"A provider's URL cannot be read: {error}.") from None
    if parsed.scheme not in {"http", "https"} or not host:
        beginning = url.split("/", maxsplit=1)[0]
        raise ConfigurationError(f"A provider's URL starts with https:// (or http://) and a host, not '{beginning}'.")
    if "@" in parsed.netloc:
        raise ConfigurationError(f"The URL of {host} holds a user name or password: keep keys in a secret.")
    refuse_forbidden(host)
    return host


def refuse_forbidden(host: str, *, named: str | None = None) -> None:
    """Refuse a host that no provider lives at.

    Args:
        host: A name or an address.
        named: The name that led to this address, for the message.

    Raises:
        ConfigurationError: It is a link-local or metadata address, or its name.
    """
    if host.rstrip(".").lower() in _METADATA_NAMES or _is_forbidden(_address(host)):
        where = host if named in {None, host} else f"{named} ({host})"
        raise ConfigurationError(
            f"{where} is a link-local or cloud metadata address; requests are not sent there. "
            "Use the provider's public host name."
        )


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine.

    Examples:
        >>> [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "example.org")]
        [True, True, True, False]
    """
    address = _address(host)
    return host.rstrip(".").lower() == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> Address | None:
    with suppress(ValueError):
        address = ip_address(host.strip("[]").split("%")[0])
        # ::ffff:169.254.169.254 reaches the same machine as its IPv4 spelling.
        return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
    with suppress(OSError):
        # The spellings that resolvers take as well: 2852039166, 0xA9FEA9FE, 169.254.43518.
        return IPv4Address(inet_aton(host.rstrip(".")))
    return None


def _is_forbidden(address: Address | None) -> bool:
    if isinstance(address, IPv6Address):
        address = _behind_gateway(address) or address
    return address is not None and (address.is_link_local or address in _METADATA_ADDRESSES)


def _behind_gateway(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that the gateway between the two protocols takes an IPv6 address to."""
    return IPv4Address(address.packed[-4:]) if address in _NAT64 else address.sixtofour

"""Which network addresses a request on a user's behalf may go to: public ones, checked after the name is resolved."""

import ipaddress
import socket

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
# IPv6 addresses that stand for an IPv4 address, which the network on the way may well deliver to.
_TRANSLATED = [ipaddress.IPv6Network(each) for each in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]


class ForbiddenAddress(Exception):
    """The host has an address that must not be called, or none at all."""


def resolve(host: str, port: int, *, private_network: bool) -> str:
    """The address to connect to. Raises ``ForbiddenAddress``.

    Every address of the host must be allowed, not just the first, and the caller must connect to the one returned: a
    name that is resolved again may by then lead elsewhere.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ForbiddenAddress(f"the host '{host}' cannot be resolved: {error}") from None
    addresses = [ipaddress.ip_address(each[4][0]) for each in found]
    forbidden = [address for address in addresses if not (private_network or is_public(address))]
    if forbidden or not addresses:
        raise ForbiddenAddress(f"the host '{host}' is not on the public internet")
    return str(addresses[0])


def is_public(address: IPAddress) -> bool:
    """Whether ``address`` is one that anybody on the internet reaches."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _TRANSLATED):
            return False
    return address.is_global and not address.is_multicast

"""Which network addresses a request on a user's behalf may go to: public ones, checked after the name is resolved."""

import ipaddress
import socket

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA has given out of IPv6 for use between hosts. Outside are loopback, link-local, site-local, private and
multicast addresses, and most of those that stand for an IPv4 address: compatible ones (::/96) and NAT64's."""

NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(each)
    for each in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by customers of a provider
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host, from within its machines
        "169.254.0.0/16",  # link-local, clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnels
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
NOT_PUBLIC_V6 = [
    ipaddress.IPv6Network(each)
    for each in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID, multicast tunnels
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # the 6bone, given back
        "3fff::/20",  # documentation
    )
]
ISATAP = 0x5EFE
"""The upper half of an interface identifier that ends in an IPv4 address, whatever the network it is in."""
ISATAP_MASK = 0xFCFF_FFFF
"""Without the two bits of it that say whether the address is unique and whether it is a group's."""


class ForbiddenAddressError(Exception):
    """The host has an address that must not be called, or none at all."""


class UnresolvedError(ForbiddenAddressError):
    """The host has no address, at least for now: it may be down, or whoever knows its address is."""


def resolve(host: str, port: int, *, private_network: bool) -> str:
    """The address to connect to. Raises ``ForbiddenAddressError``.

    Every address of the host must be allowed, not just the first, and the caller must connect to the one returned: a
    name that is resolved again may by then lead elsewhere.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnresolvedError(f"the host '{host}' cannot be resolved: {error}") from None
    addresses = [ipaddress.ip_address(each[4][0]) for each in found]
    forbidden = [address for address in addresses if not (private_network or is_public(address))]
    if forbidden or not addresses:
        raise ForbiddenAddressError(f"the host '{host}' is not on the public internet")
    return str(addresses[0])


def is_public(address: IPAddress) -> bool:
    """Whether ``address`` is one that anybody on the internet reaches, and not another way to write one that is not."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in network for network in NOT_PUBLIC_V4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address not in UNICAST or any(address in network for network in NOT_PUBLIC_V6):
        return False
    return address.is_global and (int(address) >> 32) & ISATAP_MASK != ISATAP

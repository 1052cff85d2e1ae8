"""Public addresses and all the ways there are to write, or to reach, one that is not."""

from ipaddress import ip_address

import pytest

from workers.network.addresses import ForbiddenAddressError, is_public, resolve

NOT_PUBLIC = {
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd00:ec2::254"],
    "link-local": ["169.254.169.254", "fe80::1", "fe80::1%eth0", "febf::1"],
    "site-local": ["fec0::1", "fedf::1", "feff:ffff::1"],
    "shared by a provider's customers": ["100.64.0.1", "100.100.100.200", "100.127.255.255"],
    "a cloud's host": ["168.63.129.16"],
    "protocol assignments": ["192.0.0.1", "192.0.0.9", "192.0.0.192", "2001:1::1", "2001:3::1", "2001:4:112::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarking": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "identifiers that are no addresses": ["2001:10::1", "2001:20::1", "2001:30::1"],
    "sinks and tunnels": ["192.31.196.1", "192.52.193.1", "192.175.48.1", "192.88.99.1", "2620:4f:8000::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "4000::1", "8000::1", "e000::1", "5f00::1", "3ffe::1"],
    "broadcast": ["255.255.255.255"],
    "discarded": ["100::1"],
    "IPv4-mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0.0.0.0", "::ffff:169.254.169.254"],
    "IPv4-compatible": ["::127.0.0.1", "::10.0.0.1", "::8.8.8.8", "::169.254.169.254"],
    "IPv4-translated": ["::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1", "64:ff9b:1:ffff::1"],
    "6to4": ["2002:7f00:1::", "2002:a00:1::1", "2002:808:808::1"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "ISATAP": ["2606:4700::5efe:7f00:1", "2606:4700::200:5efe:10.0.0.1", "2606:4700::5efe:8.8.8.8", "fe80::5efe:a00:1"],
}
PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.1.1.1", "128.0.0.1"),
    *("172.15.255.255", "172.32.0.0", "192.0.1.1", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
    *("2606:4700:4700::1111", "2a00:1450:4001:82a::200e", "2001:200::1", "2001:4860:4860::8888", "2003::1"),
    *("2606:4700::5efd:7f00:1", "::ffff:8.8.8.8"),
]


@pytest.mark.parametrize("address", [each for kind in NOT_PUBLIC.values() for each in kind])
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        *("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "localhost", "::1", "::127.0.0.1", "fec0::1"),
        *("::ffff:7f00:1", "0:0:0:0:0:ffff:127.0.0.1", "10.1", "0xa9fea9fe"),
    ],
)
def test_no_spelling_of_a_host_leads_to_an_address_that_is_not_public(host: str) -> None:
    with pytest.raises(ForbiddenAddressError):
        resolve(host, 443, private_network=False)


def test_with_leave_a_private_address_is_the_one_to_connect_to() -> None:
    assert resolve("127.1", 443, private_network=True) == "127.0.0.1"

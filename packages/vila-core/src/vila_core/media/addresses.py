"""Tells IP addresses of the public internet from all others.

Own tables, because those of Python's `ipaddress` differ between versions and count some special addresses as global.
Source: the IANA special-purpose address registries for IPv4 and IPv6, and the IPv6 address space registry, read in
2026. Every entry is refused, also those that the registries call globally reachable: they are anycast services and
relays, which hold no pictures.
"""

import ipaddress

SPECIAL_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared address space of carriers
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's services for its machines, though a public address
        "169.254.0.0/16",  # link local, and the metadata services of clouds
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments, with DS-Lite and the NAT64 discovery addresses
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnels (AMT)
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
GLOBAL_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
"""The only part of the IPv6 space that is assigned for hosts. Loopback, mapped IPv4 addresses, the discard-only and
segment-routing prefixes, unique-local, link-local, site-local and multicast addresses lie outside."""
SPECIAL_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, drone identifiers and others
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds IPv4 addresses
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""How IPv6-only networks reach IPv4 hosts. The local-use prefix 64:ff9b:1::/48 is no part of it, and is refused."""


def is_public(address: str) -> bool:
    """Return whether an IP address is a host of the public internet. A NAT64 address is judged by its IPv4 address."""
    if "%" in address:  # a zone id (fe80::1%eth0) names an interface of this machine
        return False
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in SPECIAL_IPV4)
    if ip in NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip in GLOBAL_UNICAST_IPV6 and not any(ip in network for network in SPECIAL_IPV6)

# SPDX-License-Identifier: MIT
"""Traffic, made by scapy from a seed: the same frames for every kernel.

A kind is a function from a :class:`Making` to the frames of one event (a datagram, the
fragments of one, a run of TCP segments). :func:`bursts` mixes events of many kinds,
the frames of different events interleaved, into bursts that each fit one poll of the NIC.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from socket import inet_aton
from typing import Any

from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_Timestamp,
    fragment,
)
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

GENERATOR, DUT, BROADCAST4 = "198.18.0.1", "198.18.0.2", "198.18.0.255"
GENERATOR6, DUT6 = "2001:2::1", "2001:2::2"
BEYOND, BEYOND6 = "198.19.0.{}", "2001:2:0:1::{:x}"
"""Where the guest has a route to, through the generator."""
ANY = "0.0.0.0"  # noqa: S104 - of no socket
SENDER, SENDER6 = "203.0.113.1", "2001:2:0:9::1"
INVALID = "192.0.2.{}"
"""Sources to which the guest's route, where it has one, leads through another device."""
TAGGED, TAGGED6 = "198.51.100.{}", "2001:2:0:a::{:x}"
"""Sources of what comes with a VLAN tag, a number each."""
GROUP, OTHER_GROUP = "239.1.1.1", "239.9.9.9"
OTHER_HOST, BROADCAST = "02:00:00:00:00:77", "ff:ff:ff:ff:ff:ff"
PORTS = range(5000, 5008)
CLOSED = 5007
CONNECTED = 6001
"""The source port that a connected socket of the guest takes from."""
STREAM_PORT = 6100
VLAN = 10
FRAMES_A_BURST = 60
MARKER = 0x88B5

Frames = list[Packet]


@dataclass(frozen=True)
class Making:
    """What an event is made with."""

    rng: random.Random
    source: str
    targets: Sequence[str]
    """MAC addresses that stand for the guest."""
    flows: int
    largest: int
    """Octets of UDP payload."""

    def ether(self, **fields: Any) -> Ether:
        usual: dict[str, Any] = {"src": self.source, "dst": self.rng.choice(self.targets)}
        return Ether(**usual | fields)

    def payload(self, least: int = 0, most: int | None = None) -> Raw:
        return Raw(self.rng.randbytes(self.rng.randint(least, most or self.largest)))

    def ip(self, **fields: Any) -> IP:
        source = f"203.0.113.{self.rng.randint(1, 200)}"
        usual: dict[str, Any] = {"src": source, "dst": DUT, "id": self.rng.randrange(1, 65536)}
        return IP(**usual | fields)

    def ports(self, flow: int) -> UDP:
        return UDP(sport=20000 + flow, dport=PORTS[flow % len(PORTS)])

    def udp4(self, flow: int | None = None, *, beyond: bool = False, **fields: Any) -> Packet:
        """The headers of a datagram of one of the flows, whose port is open or not."""
        flow = self.rng.randrange(self.flows) if flow is None else flow
        to = BEYOND.format(flow % 9 + 1) if beyond else DUT
        return self.ip(**{"src": f"203.0.113.{flow % 200 + 1}", "dst": to} | fields) / self.ports(
            flow
        )

    def udp6(self, *, beyond: bool = False, **fields: Any) -> Packet:
        flow = self.rng.randrange(self.flows)
        to = BEYOND6.format(flow % 9 + 1) if beyond else DUT6
        usual: dict[str, Any] = {"src": f"2001:2:0:9::{flow + 1:x}", "dst": to}
        return IPv6(**usual | fields) / self.ports(flow)


def udp(m: Making) -> Frames:
    return [m.ether() / m.udp4() / m.payload()]


def udp_connected(m: Making) -> Frames:
    return [m.ether() / m.ip(src=GENERATOR) / UDP(sport=CONNECTED, dport=PORTS[0]) / m.payload()]


def udp_ipv6(m: Making) -> Frames:
    return [m.ether() / m.udp6() / m.payload()]


def forwarded(m: Making) -> Frames:
    ttl = m.rng.choice((64, 64, 64, 1))
    return [m.ether() / m.udp4(beyond=True, ttl=ttl) / m.payload()]


def forwarded_ipv6(m: Making) -> Frames:
    hops = m.rng.choice((64, 64, 64, 1))
    return [m.ether() / m.udp6(beyond=True, hlim=hops) / m.payload()]


def opening(m: Making) -> Frames:
    """One datagram of each flow, to the guest."""
    return [m.ether() / m.udp4(flow) / m.payload() for flow in range(m.flows)]


def opening_beyond(m: Making) -> Frames:
    """One datagram of each flow, to be forwarded."""
    return [m.ether() / m.udp4(flow, beyond=True) / m.payload() for flow in range(m.flows)]


def new_flow(m: Making) -> Frames:
    """Three datagrams of a flow that nobody has seen yet."""
    header = m.ip() / UDP(sport=m.rng.randint(40000, 60000), dport=PORTS[0])
    return [m.ether() / header / m.payload(0, 100) for _ in range(3)]


def new_ping(m: Making) -> Frames:
    """Three echo requests of a ping that nobody has seen yet."""
    header, number = m.ip(), m.rng.randrange(65536)
    return [m.ether() / header / ICMP(id=number, seq=at) / m.payload(0, 100) for at in range(3)]


def invalid_source(m: Making, to: str = DUT) -> Frames:
    """A valid one, then an invalid one."""
    sources = [f"203.0.113.{m.rng.randint(1, 200)}", INVALID.format(m.rng.randint(1, 200))]
    headers = [m.ether() / m.ip(src=each, dst=to) for each in sources]
    return [header / UDP(dport=PORTS[0]) / m.payload() for header in headers]


def invalid_source_beyond(m: Making) -> Frames:
    """The same, to be forwarded, always to the same address."""
    return invalid_source(m, BEYOND.format(1))


def one_sender(m: Making, to: str = DUT, count: int = 3) -> Frames:
    """Datagrams of one host, each to another port."""
    headers = [m.ether() / m.ip(src=SENDER, dst=to) for _ in range(count)]
    return [header / UDP(dport=m.rng.choice(PORTS)) / m.payload() for header in headers]


def one_sender_beyond(m: Making) -> Frames:
    return one_sender(m, BEYOND.format(1))


def one_sender_in_pieces(m: Making) -> Frames:
    """Datagrams of one flow, of which the second is fragmented."""
    header = UDP(sport=4000, dport=PORTS[2])
    whole = [m.ip(src=SENDER) / header / m.payload(at, at + 100) for at in (0, 1000, 0)]
    return [m.ether() / piece for packet in whole for piece in fragment(packet, 600)]


def one_sender_routed(m: Making) -> Frames:
    """One with a route of its own, to be forwarded though it is for the guest; then others."""
    option = IPOption_LSRR(routers=[BEYOND.format(1)])
    header = m.ip(src=SENDER, options=[option]) / UDP(dport=PORTS[0])
    return [m.ether() / header / m.payload(0, 200), *one_sender(m)]


def one_sender_to_a_group(m: Making) -> Frames:
    """A report, which every host takes, then datagrams to a group without members."""
    ether = m.ether(dst="01:00:5e:09:09:09")
    header = IP(src=SENDER, dst=OTHER_GROUP, ttl=1, id=m.rng.randrange(1, 65536))
    report = b"\x16\0\0\0" + inet_aton(OTHER_GROUP)
    report = report[:2] + checksum(report).to_bytes(2, "big") + report[4:]
    igmp = ether / IP(src=SENDER, dst=OTHER_GROUP, ttl=1, id=1, proto=2) / Raw(report)
    return [igmp, *(ether / header / UDP(dport=PORTS[0]) / m.payload() for _ in range(2))]


def udp_connected_ipv6(m: Making) -> Frames:
    header = IPv6(src=GENERATOR6, dst=DUT6) / UDP(sport=CONNECTED, dport=PORTS[0])
    return [m.ether() / header / m.payload()]


def one_sender_ipv6(m: Making, to: str = DUT6, count: int = 3) -> Frames:
    """Datagrams of one host, each to another port; its port is that of the connected socket."""
    ports = [UDP(sport=CONNECTED, dport=m.rng.choice(PORTS)) for _ in range(count)]
    return [m.ether() / IPv6(src=SENDER6, dst=to) / each / m.payload() for each in ports]


def one_sender_beyond_ipv6(m: Making) -> Frames:
    return one_sender_ipv6(m, BEYOND6.format(1))


def one_sender_in_pieces_ipv6(m: Making) -> Frames:
    """Datagrams of one flow: the second is fragmented, the third has options before its ports."""
    ip, ports = IPv6(src=SENDER6, dst=DUT6), UDP(sport=4000, dport=PORTS[2])
    piece = IPv6ExtHdrFragment(id=m.rng.randrange(1 << 32))
    pieces = fragment6(ip / piece / ports / m.payload(1300, 1400), 1280)
    others = [ip / head / m.payload(0, 100) for head in (ports, IPv6ExtHdrDestOpt() / ports, ports)]
    return [m.ether() / packet for packet in (others[0], *pieces, *others[1:])]


def no_checksum_ipv6(m: Making) -> Frames:
    """A datagram with a checksum, and one of the same flow without, which IPv6 does not allow."""
    ports = UDP(sport=4001, dport=PORTS[3])
    ip = IPv6(src=SENDER6, dst=DUT6)
    packets: Frames = [m.ether() / ip / ports / m.payload() for _ in range(2)]
    packets[1][UDP].chksum = 0
    return packets


def multicast_ipv6(m: Making) -> Frames:
    to, mac = m.rng.choice((("ff02::1", "33:33:00:00:00:01"), ("ff05::99", "33:33:00:00:00:99")))
    return [m.ether(dst=mac) / IPv6(src=SENDER6, dst=to, hlim=1) / m.ports(0) / m.payload()]


def martian(m: Making) -> Frames:
    source = m.rng.choice(("127.0.0.1", ANY, "255.255.255.255", "224.0.0.9", DUT))
    return [m.ether() / m.ip(src=source) / UDP(dport=PORTS[0]) / m.payload()]


def bad_ip_checksum(m: Making) -> Frames:
    return [m.ether() / m.udp4(chksum=0x1234) / m.payload()]


def bad_udp_checksum(m: Making) -> Frames:
    packet = m.ether() / m.udp4() / m.payload(8)
    packet[UDP].chksum = 0x1234
    other = m.ether() / m.udp6() / m.payload(8)
    other[UDP].chksum = 0x1234
    return [packet, other]


def bad_ip_header(m: Making) -> Frames:
    wrong: dict[str, Any] = m.rng.choice(
        ({"version": 5}, {"ihl": 4}, {"len": 1480}, {"len": 12}, {"ihl": 15})
    )
    return [m.ether() / m.udp4(**wrong) / m.payload(0, 40)]


def bad_ipv6_header(m: Making) -> Frames:
    wrong = m.rng.choice(({"version": 5}, {"plen": 1400}, {"src": "::1"}, {"src": "ff02::1"}))
    return [m.ether() / m.udp6(**wrong) / m.payload(0, 40)]


def options(m: Making) -> Frames:
    option = m.rng.choice(
        (
            IPOption_RR(routers=[ANY] * 3),
            IPOption_Timestamp(flg=0),
            IPOption_LSRR(routers=["198.19.0.1"]),
            IPOption_Router_Alert(),
        )
    )
    packet = m.udp4(options=[option])
    packet[UDP].dport = PORTS[1]  # an error would quote the time that the guest writes there
    return [m.ether() / packet / m.payload(0, 200)]


def fragments(m: Making) -> Frames:
    """One datagram in pieces: in order, shuffled, with one twice, or with one missing."""
    number = m.rng.randrange(m.flows)
    whole = m.ip(src=f"203.0.113.{number + 1}") / UDP(sport=30000 + number, dport=PORTS[1])
    pieces = fragment(whole / m.payload(2000, 4000), 1000)
    return _disturbed(m, [m.ether() / piece for piece in pieces])


def fragments_ipv6(m: Making) -> Frames:
    header, inner = IPv6(src="2001:2:0:9::5", dst=DUT6), UDP(sport=7777, dport=PORTS[1])
    whole = header / IPv6ExtHdrFragment(id=m.rng.randrange(1 << 32)) / inner / m.payload(2000, 4000)
    return _disturbed(m, [m.ether() / piece for piece in fragment6(whole, 1200)])


def _disturbed(m: Making, pieces: Frames) -> Frames:
    how = m.rng.choice(("in order", "shuffled", "reversed", "twice", "missing"))
    if how == "shuffled":
        m.rng.shuffle(pieces)
    elif how == "reversed":
        pieces.reverse()
    elif how == "twice":
        pieces.insert(1, pieces[0].copy())
    elif how == "missing":
        del pieces[1]
    return pieces


def echo(m: Making) -> Frames:
    icmp = ICMP(id=m.rng.randrange(65536), seq=m.rng.randrange(65536))
    return [m.ether() / m.ip() / icmp / m.payload(0, 600)]


def echo_ipv6(m: Making) -> Frames:
    request = ICMPv6EchoRequest(id=m.rng.randrange(65536), data=m.rng.randbytes(64))
    return [m.ether() / IPv6(src="2001:2:0:9::7", dst=DUT6) / request]


def tcp_run(m: Making) -> Frames:
    """Segments that GRO can make one of; nobody listens, so each skb is answered by a reset."""
    return _segments(m, ["A"] * m.rng.randint(2, 6))


def tcp_pushed_then_udp(m: Making) -> Frames:
    """A burst by itself: runs that GRO passes on at their end, each after a single; then UDP."""
    runs = [_segments(m, ["PA", *["A"] * 14, "PA"]) for _ in range(3)]
    datagrams = [udp(m) for _ in range(FRAMES_A_BURST - 3 * 16)]
    return [frame for event in (*runs, *datagrams) for frame in event]


def _segments(m: Making, flags: Sequence[str]) -> Frames:
    """Of one flow, each with its TCP flags."""
    size, first = 500, m.rng.randrange(1 << 31)
    fields: dict[str, Any] = {"sport": m.rng.randint(1024, 65535), "dport": PORTS[0], "ack": 1}
    host = m.rng.randint(1, 200)
    return [
        m.ether(dst=m.targets[0])
        / IP(src=f"203.0.113.{host}", dst=DUT, id=at + 1, flags="DF")
        / TCP(seq=first + at * size, window=512, flags=each, **fields)
        / Raw(m.rng.randbytes(size))
        for at, each in enumerate(flags)
    ]


def tcp_syn(m: Making) -> Frames:
    return [m.ether() / m.ip(flags="DF") / TCP(sport=m.rng.randint(1024, 65535), dport=CLOSED)]


def arp(m: Making) -> Frames:
    asked = m.rng.choice((DUT, "198.18.0.99"))
    request = ARP(hwsrc=m.source, psrc="198.18.0.50", pdst=asked)
    return [m.ether(dst=BROADCAST) / request]


def neighbour_solicitation(m: Making) -> Frames:
    solicited = ICMPv6ND_NS(tgt=DUT6) / ICMPv6NDOptSrcLLAddr(lladdr=m.source)
    return [m.ether() / IPv6(src=GENERATOR6, dst=DUT6, hlim=255) / solicited]


def multicast(m: Making) -> Frames:
    group, mac = m.rng.choice(
        ((GROUP, "01:00:5e:01:01:01"), (OTHER_GROUP, "01:00:5e:09:09:09"), (GROUP, BROADCAST))
    )
    return [m.ether(dst=mac) / m.udp4(dst=group, ttl=1) / m.payload()]


def broadcast(m: Making) -> Frames:
    to = m.rng.choice((BROADCAST4, "255.255.255.255", DUT))
    return [m.ether(dst=BROADCAST) / m.udp4(dst=to) / m.payload()]


def other_host(m: Making) -> Frames:
    return [m.ether(dst=OTHER_HOST) / m.udp4() / m.payload()]


def vlan(m: Making) -> Frames:
    """A known VLAN, an unknown one, a priority tag; with IPv4 or IPv6 within.

    No flow comes by two of them: which device a packet comes by may decide when it is passed on.
    """
    tag = Dot1Q(vlan=m.rng.choice((VLAN, VLAN, 77, 0)), prio=m.rng.randrange(8))
    datagram = (
        m.udp4(src=TAGGED.format(tag.vlan + 1))
        if m.rng.random() < 0.7
        else m.udp6(src=TAGGED6.format(tag.vlan + 1))
    )
    return [m.ether() / tag / datagram / m.payload(0, 1300)]


def by_two_devices(m: Making) -> Frames:
    """Datagrams of one flow, with a VLAN tag and without in turn."""
    flow = m.rng.randrange(m.flows // len(PORTS)) * len(PORTS)
    headers = [m.ether() / Dot1Q(vlan=VLAN), m.ether()] * 2
    return [header / m.udp4(flow, src=TAGGED.format(1)) / m.payload() for header in headers]


def vlan_tcp(m: Making) -> Frames:
    return [m.ether() / Dot1Q(vlan=VLAN) / m.ip(flags="DF") / TCP(sport=1024, dport=CLOSED)]


def qinq(m: Making) -> Frames:
    outer = m.rng.choice((Dot1AD, Dot1Q))(vlan=m.rng.choice((VLAN, 77)))
    return [m.ether() / outer / Dot1Q(vlan=VLAN) / m.udp4() / m.payload(0, 1300)]


def unknown_type(m: Making) -> Frames:
    kind = m.rng.choice((0x1234, 0x9000, 0x88CC, 0x0005))
    return [m.ether(type=kind) / m.payload(46, 200)]


def short(m: Making) -> Frames:
    """Shorter than a frame may be, or with less in it than its type promises."""
    return [m.ether(type=m.rng.choice((0x0800, 0x86DD, 0x0806))) / m.payload(0, 18)]


def long(m: Making) -> Frames:
    """As long as a frame may be, and longer."""
    return [m.ether() / m.udp4() / Raw(m.rng.randbytes(m.rng.choice((1472, 1473, 1600))))]


def hop_by_hop(m: Making) -> Frames:
    header = IPv6(src="2001:2:0:9::9", dst=DUT6) / IPv6ExtHdrHopByHop()
    return [m.ether() / header / m.ports(m.rng.randrange(8)) / m.payload(0, 300)]


Kind = Callable[[Making], Frames]
LOCAL: Mapping[Kind, int] = {
    udp: 30, udp_connected: 6, udp_ipv6: 8, echo: 3, echo_ipv6: 2, tcp_run: 4, tcp_syn: 2,
    fragments: 4, fragments_ipv6: 2, options: 4, hop_by_hop: 2, arp: 3, neighbour_solicitation: 1,
    multicast: 4, broadcast: 4, vlan: 6, vlan_tcp: 1, qinq: 2,
}  # fmt: skip
BROKEN: Mapping[Kind, int] = {
    bad_ip_checksum: 4, bad_udp_checksum: 3, bad_ip_header: 4, bad_ipv6_header: 2, martian: 4,
    unknown_type: 5, short: 3, long: 2, other_host: 5, invalid_source: 2,
}  # fmt: skip
BEYOND_IT: Mapping[Kind, int] = {forwarded: 20, forwarded_ipv6: 10}
FROM_ONE: Mapping[Kind, int] = {
    one_sender: 12, one_sender_beyond: 6, one_sender_routed: 2, one_sender_to_a_group: 2,
    one_sender_in_pieces: 3,
    udp_connected: 4, invalid_source: 2, fragments: 2, bad_udp_checksum: 1, multicast: 2,
}  # fmt: skip
FROM_ONE_IPV6: Mapping[Kind, int] = {
    one_sender_ipv6: 12, one_sender_beyond_ipv6: 6, one_sender_in_pieces_ipv6: 3,
    udp_connected_ipv6: 6, no_checksum_ipv6: 2, multicast_ipv6: 3, bad_udp_checksum: 2,
    neighbour_solicitation: 1, hop_by_hop: 1, udp_ipv6: 4,
}  # fmt: skip
EVERYTHING: Mapping[Kind, int] = {**LOCAL, **BROKEN, forwarded: 4, forwarded_ipv6: 2}


def bursts(making: Making, kinds: Mapping[Kind, int], count: int) -> Iterator[list[bytes]]:
    """``count`` bursts of the ``kinds``, by their weights; each ends with its marker."""
    rng = making.rng
    for _ in range(count):
        events: list[Frames] = []
        while sum(map(len, events)) < FRAMES_A_BURST:
            events.append(rng.choices(list(kinds), list(kinds.values()))[0](making))
        # Frames of one event keep their order, as those of one sender do.
        order = [at for at, frames in enumerate(events) for _ in frames]
        rng.shuffle(order)
        left = [iter(frames) for frames in events]
        yield [bytes(next(left[at])) for at in order][:FRAMES_A_BURST]


def marker(source: str, number: int) -> bytes:
    """The frame that ends burst ``number``."""
    frame = Ether(src=source, dst=BROADCAST, type=MARKER) / Raw(
        number.to_bytes(4, "big") + bytes(42)
    )
    return bytes(frame)

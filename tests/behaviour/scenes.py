# SPDX-License-Identifier: MIT
"""The scenes. To add one, write a :class:`Scene` into :data:`SCENES`.

``{nic}`` stands for the NIC's interface, ``{dut}`` and ``{generator}`` for MAC addresses.
Everything is set up in a network namespace that is new, so nothing has to be taken back.
"""

from __future__ import annotations

from dataclasses import replace

from tests.behaviour import traffic
from tests.behaviour.scene import Scene, Socket, addressed, usual
from tests.behaviour.traffic import PORTS

IPV4, ALL = 0x0800, 3
"""Protocols of a tap."""
SECOND_MAC = "02:00:00:00:00:10"
FORWARDING = ("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",)
UP = ("ip link set {nic} up",)
VETH = "ip link add p0 address 02:00:00:00:00:20 type veth peer name p1 address 02:00:00:00:00:21"
UNICAST = {
    kind: weight
    for kind, weight in traffic.EVERYTHING.items()
    if kind not in (traffic.multicast, traffic.broadcast, traffic.arp)
}
"""For where devices get their own copies, by a worker that runs beside reception."""
ONE_HASH = {
    kind: weight for kind, weight in UNICAST.items() if kind not in (traffic.vlan, traffic.qinq)
}
"""All that comes from one port of one source goes to the same CPU."""

HOOKS = {
    "prerouting": (1, 2, 3),
    "input": (4, 5, 6),
    "forward": (4, 5, 6),
    "postrouting": (0, 2, 3),
}
"""By hook: the ports (after 5000) that it accepts, drops and queues to user space."""


def verdicts(only: str = "") -> str:
    """A ruleset in which the verdicts of each hook alternate with the port; all are counted."""
    counters, chains = [], []
    for hook, ports in HOOKS.items():
        rules = []
        for port, verdict in zip(ports, ("accept", "drop", "queue to 0"), strict=True):
            name = f"{hook}_{verdict.split()[0]}"
            counters.append(f"counter {name} {{ }}")
            rules.append(f"{only} udp dport {PORTS[port]} counter name {name} {verdict}")
        lines = "\n".join(rules)
        chains.append(f"chain {hook} {{ type filter hook {hook} priority 0;\n{lines}\n}}")
    return "table inet behaviour {\n" + "\n".join((*counters, *chains)) + "\n}\n"


def at_ingress(port: int, action: str) -> str:
    """A command that has tc do ``action`` with what comes in for ``port``."""
    match = f"protocol ip prio 1 flower ip_proto udp dst_port {port}"
    return f"tc filter add dev {{nic}} ingress {match} action {action}"


LOSSY = """
table inet behaviour {
  chain lossy { type filter hook prerouting priority 0;
    tcp dport 6100 numgen inc mod 31 == 7 drop
    tcp dport 6100 tcp flags syn numgen inc mod 3 == 0 drop
  }
}
"""
"""Takes away data, and openings of connections."""

INGRESS = """
table netdev behaviour {
  counter ingress_drop { }
  counter ingress_accept { }
  chain ingress { type filter hook ingress device "{nic}" priority 0;
    ip protocol udp udp dport 5005 counter name ingress_drop drop
    ip protocol udp udp dport 5006 counter name ingress_accept accept
  }
}
"""

NAT = """
table ip behaviour {
  counter to_another { }
  counter to_self { }
  counter masqueraded { }
  chain pre { type nat hook prerouting priority -100;
    ip daddr 198.18.0.2 udp dport 5004 counter name to_another dnat to 198.19.0.9:9000
    ip daddr 198.18.0.2 udp dport 5005 counter name to_self dnat to 198.18.0.2:5006
  }
  chain post { type nat hook postrouting priority 100;
    oifname "{nic}" ip daddr 198.19.0.0/16 counter name masqueraded masquerade
  }
}
"""

CONNTRACK = """
table inet behaviour {
  counter new { }
  counter known { }
  chain pre { type filter hook prerouting priority 0;
    ct state new counter name new accept
    ct state established counter name known accept
  }
}
"""

MARKS = """
table inet behaviour {
  chain marks { type filter hook prerouting priority 0;
    udp dport { 5001, 5004, 5006 } meta mark set 1
  }
}
"""

SCENES = (
    Scene(name="plain"),
    Scene(name="tap", taps=[("{nic}", ALL), ("{nic}", IPV4)]),
    Scene(name="forward", setup=FORWARDING, kinds={**traffic.EVERYTHING, **traffic.BEYOND_IT}),
    Scene(
        name="vlan and bridge",
        setup=[
            "ip link add br0 address {dut} type bridge mcast_snooping 0",
            VETH,
            "ip link set {nic} master br0",
            "ip link set p0 master br0",
            *UP, "ip link set p0 up", "ip link set p1 up",
            "ip link add link {nic} name vlan10 type vlan id 10",
            "ip link set vlan10 up",
        ],
        on="br0",
        taps=[("p1", ALL)],
    ),
    Scene(
        name="bond",
        setup=[
            "ip link add bd type bond mode active-backup num_grat_arp 0 fail_over_mac active",
            "ip link set {nic} master bd",
        ],
        on="bd",
    ),
    Scene(
        name="macvlan",
        setup=[f"ip link add link {{nic}} name mv0 address {SECOND_MAC} type macvlan mode bridge",
               "ip link set mv0 up"],
        macs=("{dut}", SECOND_MAC),
        kinds=UNICAST,
    ),
    Scene(
        name="vrf",
        setup=[
            "ip link add red type vrf table 10",
            "ip link set red up",
            "ip link set {nic} master red",
            "sysctl -qw net.ipv4.udp_l3mdev_accept=1",
            *FORWARDING,
        ],
        kinds={**traffic.EVERYTHING, **traffic.BEYOND_IT},
        table="10",
        sockets=usual("{nic}", vrf="red"),
        nft=verdicts('iifname "red"'),
    ),
    Scene(
        name="rp_filter",
        setup=[
            "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1",
            VETH,
            "ip link set p0 up", "ip link set p1 up",
            "ip route add 192.0.2.0/24 dev p0",
            *FORWARDING,
        ],
        kinds={**traffic.EVERYTHING, traffic.invalid_source: 20},
        first=({traffic.invalid_source_beyond: 1},),
    ),
    Scene(
        name="nft",
        setup=FORWARDING,
        nft=verdicts() + INGRESS,
        kinds={**traffic.EVERYTHING, **traffic.BEYOND_IT},
        first=({traffic.bad_ip_checksum: 1}, {traffic.forwarded: 1}),
    ),
    Scene(
        name="nat",
        setup=FORWARDING,
        nft=NAT,
        # Conntrack sees the second packet of a flow when it knows the first: see the README.
        first=({traffic.opening: 1}, {traffic.opening_beyond: 1}),
        kinds={
            traffic.udp: 30, traffic.forwarded: 30, traffic.fragments: 3, traffic.arp: 2,
            traffic.bad_ip_checksum: 3, traffic.unknown_type: 3, traffic.other_host: 2,
        },
        flows=60,
    ),
    Scene(
        name="tc redirect",
        setup=[
            VETH,
            "ip link set p0 up", "ip link set p1 up",
            "tc qdisc add dev {nic} clsact",
            at_ingress(5002, "mirred egress redirect dev p0"),
            at_ingress(5003, "mirred ingress redirect dev p0"),
            at_ingress(5004, "mirred egress mirror dev p0"),
            at_ingress(5005, "gact drop"),
        ],
        taps=[("p1", ALL)],
    ),
    Scene(
        name="xdp",
        setup=[*UP, VETH, "ip link set p0 up", "ip link set p1 up"],
        xdp=("{nic}", "p0"),
        taps=[("p1", ALL)],
    ),
    Scene(
        name="timestamps",
        sockets=[replace(each, stamped=True) for each in usual("{nic}")],
    ),
    Scene(
        name="busy poll",
        sockets=[replace(each, busy_poll_us=2000) for each in usual("{nic}")[:3]],
        kinds={traffic.udp: 10, traffic.udp_connected: 2, **traffic.BROKEN},
    ),
    Scene(
        name="two namespaces",
        setup=[
            f"ip link add link {{nic}} name mv0 address {SECOND_MAC} type macvlan mode bridge",
            "ip link set mv0 netns other",
            *addressed("mv0", ip="ip -netns other"),
        ],
        sockets=[*usual("{nic}"), *usual("mv0", "other")],
        namespaces=("other",),
        kinds=UNICAST,
        macs=("{dut}", SECOND_MAC),
    ),
    Scene(
        name="gro",
        kinds={traffic.tcp_pushed_then_udp: 1},
        taps=[("{nic}", IPV4)],
        one_order=True,
    ),
    Scene(name="tcp with loss", nft=LOSSY, streams=12),
    Scene(name="tcp, busy polling", streams=1, rounds=60, busy_poll_us=2_000_000),
    Scene(name="jumbo", setup=["ip link set {nic} mtu 9000"], largest=8900),
    Scene(
        name="one sender",
        setup=[*FORWARDING, "sysctl -qw net.ipv4.conf.all.accept_source_route=1",
               "sysctl -qw net.ipv4.conf.{nic}.accept_source_route=1"],
        first=({traffic.one_sender_to_a_group: 1}, {traffic.one_sender_routed: 1}),
        kinds=traffic.FROM_ONE,
    ),
    Scene(name="one sender, IPv6", setup=FORWARDING, kinds=traffic.FROM_ONE_IPV6),
    Scene(
        name="rules",
        setup=[*FORWARDING, "ip rule add fwmark 1 table 100",
               "ip route add blackhole default table 100"],
        nft=MARKS,
        kinds=traffic.FROM_ONE,
    ),
    Scene(
        name="waiting threads",
        sockets=[Socket(name="waited for", port=PORTS[0], waiting=20)],
        kinds={traffic.udp_connected: 1},
        bursts=1,
    ),
    Scene(
        name="reuseport",
        sockets=[Socket(name=f"member {at}", port=PORTS[0], member=True) for at in range(2)],
        kinds={traffic.udp_connected: 1},
    ),
)  # fmt: skip

OVERFLOW = Scene(
    name="overflow",
    sockets=[replace(each, room=8_000, between=9) for each in usual("{nic}")],
    kinds={**traffic.FROM_ONE, **traffic.FROM_ONE_IPV6, traffic.udp: 10},
)
NO_MEMORY = Scene(
    name="no memory",
    no_memory=True,
    sockets=[replace(each, between=2) for each in usual("{nic}")],
    kinds={**traffic.FROM_ONE, **traffic.FROM_ONE_IPV6, traffic.udp: 10},
)
BY_SIZE = (OVERFLOW, NO_MEMORY)
"""What fits depends on truesize, which step 11 changes."""
RPS = Scene(
    name="rps",
    setup=["write 3 /sys/class/net/{nic}/queues/rx-0/rps_cpus"],
    kinds=ONE_HASH,
)
"""Needs two CPUs, which a user-mode kernel does not have."""
NEW_FLOWS = Scene(
    name="conntrack",
    nft=CONNTRACK,
    kinds={traffic.udp: 30, traffic.new_flow: 10, traffic.new_ping: 10},
)
"""Not the same in every step: see the README."""
TWO_DEVICES = replace(
    next(scene for scene in SCENES if scene.name == "vlan and bridge"),
    name="by two devices",
    kinds={traffic.udp: 20, traffic.by_two_devices: 10},
)
"""Nor this."""

NETCONSOLE = "/sys/kernel/config/netconsole/behaviour"
CHURN = (
    Scene(
        name="link and queues",
        churn=[
            "ip link set {nic} down", "ip link set {nic} up",
            "ip link set {nic} mtu 9000", "ip link set {nic} mtu 1500",
            "ethtool -G {nic} rx 512", "ethtool -G {nic} rx 1024",
            "ip link set {nic} promisc on", "ip link set {nic} promisc off",
        ] * 2,
        nft=verdicts(),
        taps=[("{nic}", ALL)],
    ),
    Scene(
        name="devices that come and go",
        churn=[
            "ip link add link {nic} name vlan10 type vlan id 10", "ip link set vlan10 up",
            f"ip link add link {{nic}} name mv0 address {SECOND_MAC} type macvlan",
            "ip link set mv0 up",
            "ip link del mv0", "ip link del vlan10",
            "ip link add br0 type bridge", "ip link set br0 up", "ip link set {nic} master br0",
            "ip link del br0",
            "ip link add red type vrf table 10", "ip link set {nic} master red",
            "ip link set red up", "ip link del red",
        ] * 2,
        macs=("{dut}", SECOND_MAC),
    ),
    Scene(
        name="namespaces that come and go",
        churn=[
            "ip netns add other",
            f"ip link add link {{nic}} name mv0 address {SECOND_MAC} type macvlan",
            "ip link set mv0 netns other", "ip -netns other link set mv0 up",
            f"ip -netns other address add {traffic.DUT}/24 dev mv0",
            "ip netns del other",
            "ip netns add other",
            "ip link set {nic} netns other", "ip -netns other link set {nic} up",
            f"ip -netns other address add {traffic.DUT}/24 dev {{nic}}",
            "ip netns del other",
            "take {nic}", "ip link set {nic} up",
        ] * 2,
        macs=("{dut}", SECOND_MAC),
    ),
    Scene(
        name="netpoll",
        churn=[
            "mount -t configfs none /sys/kernel/config",
            f"mkdir {NETCONSOLE}",
            f"write {{nic}} {NETCONSOLE}/dev_name",
            f"write {traffic.DUT} {NETCONSOLE}/local_ip",
            f"write {traffic.GENERATOR} {NETCONSOLE}/remote_ip",
            f"write 1 {NETCONSOLE}/enabled",
            *["write '<1>under load' /dev/kmsg"] * 40,
            "ip link set {nic} down", "ip link set {nic} up",
            "write '<1>after down and up' /dev/kmsg",
            f"write 0 {NETCONSOLE}/enabled",
            f"rmdir {NETCONSOLE}",
        ],
    ),
    Scene(
        name="driver unbound and bound",
        churn=[
            "write {pci} /sys/bus/pci/drivers/sfc/unbind",
            "write {pci} /sys/bus/pci/drivers/sfc/bind",
            "take {nic}", "ip link set {nic} up",
        ] * 3,
        nft=verdicts(),
    ),
)  # fmt: skip

BY_NAME = {scene.name: scene for scene in (*SCENES, *BY_SIZE, RPS, *CHURN)}

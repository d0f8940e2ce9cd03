# SPDX-License-Identifier: MIT
"""Run in the guest as root: a BPF program that takes the longer packets.

Arguments: the agent's archive and an interface, to drop what is longer than LIMIT octets
in PRE_ROUTING; and a veth, to hand it on to its peer in another namespace, with no queue
in between. Until standard input ends.
"""

import ctypes
import os
import socket
import struct
import sys

LIMIT = 100
SYS_BPF, PROG_LOAD, LINK_CREATE = 321, 5, 28
SCHED_CLS, NETFILTER = 3, 32
BPF_NETFILTER, BPF_TCX_INGRESS = 45, 46
TCX_NEXT, REDIRECT_PEER = -1, 155


def bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.syscall(SYS_BPF, command, attributes, len(attributes))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(done)


def op(code: int, registers: int, offset: int, number: int) -> bytes:
    return struct.pack("BBhi", code, registers, offset, number)


def load(kind: int, attach_type: int, *program: bytes) -> int:
    code = ctypes.create_string_buffer(b"".join(program))
    license_ = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)
    attributes = struct.pack(
        "IIQQIIQII16sII", kind, len(program), ctypes.addressof(code), ctypes.addressof(license_),
        1, len(log), ctypes.addressof(log), 0, 0, b"long_packets", 0, attach_type,
    )  # fmt: skip
    try:
        return bpf(PROG_LOAD, attributes)
    except OSError as error:
        raise SystemExit(f"{error}\n{log.value.decode()}") from error


def drop(interface: str) -> int:
    from harness.agent.tracing.btf import VMLINUX, Btf

    found = Btf(VMLINUX.read_bytes()).member_offsets(
        ("sk_buff", "len"), ("sk_buff", "dev"), ("net_device", "ifindex")
    )
    assert found is not None
    length, device, ifindex = found
    program = load(
        NETFILTER,
        BPF_NETFILTER,
        op(0x79, 0x11, 8, 0),  # r1 = ctx->skb
        op(0x61, 0x12, length, 0),  # r2 = r1->len
        op(0x79, 0x13, device, 0),  # r3 = r1->dev
        op(0x61, 0x33, ifindex, 0),  # r3 = r3->ifindex
        op(0xB7, 0x00, 0, 1),  # NF_ACCEPT
        op(0xB5, 0x02, 2, LIMIT),  # if r2 <= LIMIT: exit
        op(0x55, 0x03, 1, socket.if_nametoindex(interface)),  # if r3 is another: exit
        op(0xB7, 0x00, 0, 0),  # NF_DROP
        op(0x95, 0x00, 0, 0),
    )
    pre_routing = struct.pack("IIiI", socket.AF_INET, 0, 1, 0)
    return bpf(LINK_CREATE, struct.pack("IIII", program, 0, BPF_NETFILTER, 0) + pre_routing)


def redirect(interface: str, veth: str) -> int:
    program = load(
        SCHED_CLS,
        BPF_TCX_INGRESS,
        op(0x61, 0x12, 0, 0),  # r2 = ctx->len
        op(0xB7, 0x00, 0, TCX_NEXT),
        op(0xB5, 0x02, 3, LIMIT),  # if r2 <= LIMIT: exit
        op(0xB7, 0x01, 0, socket.if_nametoindex(veth)),
        op(0xB7, 0x02, 0, 0),
        op(0x85, 0x00, 0, REDIRECT_PEER),
        op(0x95, 0x00, 0, 0),
    )
    where = struct.pack("IIII", program, socket.if_nametoindex(interface), BPF_TCX_INGRESS, 0)
    return bpf(LINK_CREATE, where + bytes(16))


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    link = drop(sys.argv[2]) if len(sys.argv) == 3 else redirect(*sys.argv[2:])
    print("hooked", flush=True)
    sys.stdin.read()

# SPDX-License-Identifier: MIT
"""Packet classes and Internet checksums.

Receive: a whole batch at a time, in numpy. Frames of a sender with checksum offload
arrive with an unfinished checksum (TP_STATUS_CSUMNOTREADY). A real sending NIC would
have finished it, so it is finished here before the guest sees the frame. All other
TCP and UDP checksums are verified; the event reports a bad one. Transmit: one frame
at a time, as the option descriptors ask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.nic.memory import Int64s, Octets, Qwords

ETH_HLEN = 14
ETH_ZLEN = 60

# ESE_DZ_L3_CLASS_* and ESE_FZ_L4_CLASS_* of ef10_regs.h.
L3_UNKNOWN, L3_IP4, L3_IP6, L3_IP4_FRAG, L3_ARP, L3_IP6_FRAG = 0, 1, 2, 4, 5, 6
L4_UNKNOWN, L4_TCP, L4_UDP = 0, 1, 2

_ETH_P_IP, _ETH_P_ARP, _ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
_TPIDS = (0x8100, 0x88A8)
_TCP, _UDP = 6, 17
# Hop-by-hop options, routing and destination options, which contain their length.
_IP6_OPTIONS = (0, 43, 60)
_NEXT_ROUTING, _NEXT_FRAGMENT = 43, 44
# 16-bit words from the start of the frame up to the checksum of TCP over IPv6.
_HEAD_WORDS = 36
_IP4_L4_WORD, _IP6_L4_WORD = 17, 27
_FEW_LENGTHS = 8
_SHORT_ROW = 24
_ONES = np.uint64(0xFFFF)
_HEAD_BYTES = 2 * _HEAD_WORDS
# Destination, ethertype, version and service, length, fragment, TTL and protocol,
# addresses.
_COMMON_WORDS = [0, 1, 2, 6, 7, 8, 10, 11, 13, 14, 15, 16]

Words = npt.NDArray[np.uint16]
Bools = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Classes:
    """The parser's results, one element per frame.

    ``ip_bad`` and ``l4_bad`` are checksum verdicts; without an L4 verdict ``l4`` is
    unknown. ``tags`` is the number of VLAN tags. ``head`` has the first words of each
    frame in host order, one row per word, without tags and IPv4 options, for hashing.
    """

    mac: Qwords
    multicast: Bools
    tags: Int64s
    l3: Int64s
    l4: Int64s
    ip_bad: Bools
    l4_bad: Bools
    head: npt.NDArray[np.uint32]

    def part(self, rows: Int64s, head: npt.NDArray[np.uint16]) -> Classes:
        """The elements of ``rows`` with another ``head``, to fill in and :meth:`put` back."""
        return Classes(
            self.mac[rows], self.multicast[rows], self.tags[rows], self.l3[rows], self.l4[rows],
            self.ip_bad[rows], self.l4_bad[rows], head.astype(np.uint32),
        )  # fmt: skip

    def put(self, rows: Int64s, part: Classes) -> None:
        self.l3[rows], self.l4[rows] = part.l3, part.l4
        self.ip_bad[rows], self.l4_bad[rows] = part.ip_bad, part.l4_bad
        self.head[:, rows] = part.head


@dataclass(frozen=True, slots=True)
class Flow:
    """The common properties of all frames of a batch: the fast path of a flood.

    ``hashed`` are the 16-bit words that RSS hashes (addresses, and the ports of TCP), or
    None if the ports differ.
    """

    mac: int
    l3: int
    l4: int
    hashed: tuple[int, ...] | None

    def to_hash(self, frames: Octets) -> npt.NDArray[np.uint32]:
        """``hashed`` of each of ``frames`` if the ports differ, one column per frame."""
        words = frames[:, 26:38].view(">u2")
        return np.ascontiguousarray(words.T).astype(np.uint32)


def uniform(frames: Octets, length: int, *, unfinished: bool) -> Flow | None:
    """The batch as one :class:`Flow`, with finished checksums, or None.

    Returns None and changes nothing unless all frames, ``length`` octets long, are plain
    IPv4 TCP or UDP between two hosts, with all checksums good or all unfinished. A load
    generator sends such frames; this costs a third of :func:`classify`.
    """
    words = frames[:, :_HEAD_BYTES].view("<u2")
    common = words[:, _COMMON_WORDS]
    if not (common == common[0]).all():
        return None
    first: list[int] = common[0].tolist()
    mac0, mac1, mac2, ethertype, version, total, fragment, protocol, *hashed = first
    protocol >>= 8
    size = _swapped(total) - 20
    least = {_TCP: 20, _UDP: 8}.get(protocol)
    if (
        ethertype != _swapped(_ETH_P_IP)
        or version & 0xFF != 0x45
        or fragment & 0xFF3F
        or least is None
        or not least <= size <= length - ETH_HLEN - 20
    ):
        return None
    # Sums of host-order words: the result is the octet-swapped sum of network-order words.
    if (_row_sums(frames[:, 14:34].view("<u4")) % _ONES).any():
        return None
    # From the addresses on, which are part of the pseudo header.
    whole, rest = divmod(size + 8, 4)
    dwords = frames[:, 26 : 30 + 4 * whole].view("<u4")
    sums = _row_sums(dwords[:, :whole])
    if rest:
        sums += dwords[:, whole] & np.uint32((1 << 8 * rest) - 1)
    sums += np.uint64(_swapped(size) + _swapped(protocol))
    field = words[:, _IP4_L4_WORD + (3 if protocol == _UDP else 8)]
    if unfinished:
        field[:] = _ONES - (sums - field) % _ONES
    elif (sums % _ONES).any():
        # UDP without a checksum (a field of 0) is valid, and left to classify().
        return None
    mac = _swapped(mac0) << 32 | _swapped(mac1) << 16 | _swapped(mac2)
    if protocol == _UDP:
        return Flow(mac, L3_IP4, L4_UDP, tuple(map(_swapped, hashed)))
    ports = words[:, _IP4_L4_WORD : _IP4_L4_WORD + 2]
    if not (ports == ports[0]).all():
        return Flow(mac, L3_IP4, L4_TCP, None)
    return Flow(mac, L3_IP4, L4_TCP, tuple(map(_swapped, hashed + ports[0].tolist())))


def _row_sums(dwords: npt.NDArray[np.uint32]) -> Qwords:
    """The sum of each row. Short rows are summed by columns, three times faster."""
    total: Qwords
    if dwords.shape[1] <= _SHORT_ROW:
        total = dwords.T.astype(np.uint64, order="C").sum(axis=0, dtype=np.uint64)
    else:
        total = dwords.sum(axis=1, dtype=np.uint64)
    return total


def _swapped(word: int) -> int:
    return (word & 0xFF) << 8 | word >> 8


def _payload_sums(dwords: npt.NDArray[np.uint32], rows: Int64s, lengths: Int64s) -> Qwords:
    """Sums modulo 65535, in network order, of the first ``lengths`` octets of ``rows``.

    ``dwords`` is a (frames, dwords) view from the start of the sum on.
    """
    unique: list[int] = np.unique(lengths).tolist()
    if len(unique) <= _FEW_LENGTHS:
        total = np.zeros(rows.size, np.uint64)
        for length in unique:
            whole, rest = divmod(length, 4)
            at = np.flatnonzero(lengths == length)
            block = dwords[rows[at], : whole + 1]
            sums = _row_sums(block[:, :whole])
            if rest:
                sums += block[:, whole] & np.uint32((1 << 8 * rest) - 1)
            total[at] = sums
    else:
        whole_each, rest_each = np.divmod(lengths, 4)
        block = dwords[rows, : int(whole_each.max()) + 1]
        tail = block[np.arange(rows.size), whole_each] & (
            (np.uint32(1) << (8 * rest_each).astype(np.uint32)) - np.uint32(1)
        )
        block[np.arange(block.shape[1]) >= whole_each[:, None]] = 0
        total = block.sum(axis=1, dtype=np.uint64) + tail
    # The words were summed in host order: a multiplication by 256 modulo 65535 swaps octets.
    return total % _ONES * np.uint64(256) % _ONES


def classify(frames: Octets, lengths: Int64s, unfinished: Bools) -> Classes:
    """Parse a batch of frames and finish or verify their checksums.

    Skips up to two VLAN tags and IPv4 options, but not IPv6 extension headers: a frame
    with those has no L4 class, and the stack verifies its checksum.

    Args:
        frames: (n, slot) octets, one frame per row, writable; rows may be strided.
            A row is longer than any frame in it.
        lengths: octets of each frame, at least :data:`ETH_ZLEN`.
        unfinished: frames whose L4 checksum the sender left to its hardware; it
            is written into ``frames``.
    """
    words = frames[:, :_HEAD_BYTES].view(">u2")
    # Transposed once, so that the following steps read memory in order.
    head: npt.NDArray[np.uint32] = np.ascontiguousarray(words.T).astype(np.uint32)
    mac = (head[0].astype(np.uint64) << np.uint64(32)) | (
        (head[1] << np.uint32(16)) | head[2]
    ).astype(np.uint64)
    tagged = _is_tag(head[6])
    tags = np.zeros(lengths.size, np.int64)
    found = Classes(
        mac, (head[0] & 0x100) != 0, tags,
        l3=np.zeros(lengths.size, np.int64), l4=np.zeros(lengths.size, np.int64),
        ip_bad=np.zeros(lengths.size, bool), l4_bad=np.zeros(lengths.size, bool), head=head,
    )  # fmt: skip
    if not tagged.any():
        _network(found, frames, lengths, unfinished)
    else:
        tags += tagged
        tags += tagged & _is_tag(head[8])
        for number in np.unique(tags).tolist():
            rows = np.flatnonzero(tags == number)
            # Without its tags a frame has the usual layout.
            part = frames[rows, 4 * number :]
            inner = found.part(rows, np.ascontiguousarray(part[:, :_HEAD_BYTES].view(">u2").T))
            _network(inner, part, lengths[rows] - 4 * number, unfinished[rows])
            if unfinished[rows].any():
                frames[rows, 4 * number :] = part
            found.put(rows, inner)
    left = np.flatnonzero(unfinished & (found.l4 == L4_UNKNOWN))
    for row in left.tolist():  # extension headers and the like: rare
        frame = bytearray(frames[row, : int(lengths[row])].tobytes())
        if finish_checksums(frame, ip=False, l4=True):
            frames[row, : len(frame)] = np.frombuffer(frame, np.uint8)
    return found


def _is_tag(ethertype: npt.NDArray[np.uint32]) -> Bools:
    found: Bools = (ethertype == _TPIDS[0]) | (ethertype == _TPIDS[1])
    return found


def _network(found: Classes, frames: Octets, lengths: Int64s, unfinished: Bools) -> None:
    """Fill in the L3 and L4 classes of frames without tags."""
    head, l3 = found.head, found.l3
    ethertype = head[6]
    l3[ethertype == _ETH_P_ARP] = L3_ARP
    ip4 = (ethertype == _ETH_P_IP) & ((head[7] >> 12) == 4)
    if ip4.any():
        fragment = (head[10] & 0x3FFF) != 0
        l3[ip4] = np.where(fragment[ip4], L3_IP4_FRAG, L3_IP4)
        words = (head[7] >> 8) & 15
        plain = ip4 & (words == 5)
        found.ip_bad |= plain & (head[7:17].sum(axis=0) % 0xFFFF != 0)
        _layer4(
            found, frames, lengths, unfinished, plain & ~fragment & ~found.ip_bad,
            l4_length=head[8].astype(np.int64) - 20,
            protocol=head[11] & 0xFF, l4_word=_IP4_L4_WORD, address_words=slice(13, 17),
        )  # fmt: skip
        optioned = ip4 & (words > 5) & (ETH_HLEN + 4 * words <= lengths)
        for number in np.unique(words[optioned]).tolist():
            rows = optioned & (words == number)
            header = frames[rows, ETH_HLEN : ETH_HLEN + 4 * number].view(">u2")
            found.ip_bad[rows] = header.sum(axis=1, dtype=np.uint64) % _ONES != 0
            l4_word = 7 + 2 * number
            _layer4(
                found, frames, lengths, unfinished, rows & ~fragment & ~found.ip_bad,
                l4_length=head[8].astype(np.int64) - 4 * number,
                protocol=head[11] & 0xFF, l4_word=l4_word, address_words=slice(13, 17),
            )  # fmt: skip
            # Hashing expects the ports where they are without options.
            ports = frames[rows, 2 * l4_word : 2 * l4_word + 4].view(">u2")
            head[_IP4_L4_WORD : _IP4_L4_WORD + 2, rows] = ports.T
    ip6 = (ethertype == _ETH_P_IPV6) & ((head[7] >> 12) == 6) & (lengths >= 2 * _IP6_L4_WORD)
    if ip6.any():
        protocol = head[10] >> 8
        l3[ip6] = np.where(protocol[ip6] == _NEXT_FRAGMENT, L3_IP6_FRAG, L3_IP6)
        _layer4(
            found, frames, lengths, unfinished, ip6, l4_length=head[9].astype(np.int64),
            protocol=protocol, l4_word=_IP6_L4_WORD, address_words=slice(11, 27), optional=False,
        )  # fmt: skip


def _layer4(
    found: Classes,
    frames: Octets,
    lengths: Int64s,
    unfinished: Bools,
    candidates: Bools,
    *,
    l4_length: Int64s,
    protocol: npt.NDArray[np.uint32],
    l4_word: int,
    address_words: slice,
    optional: bool = True,
) -> None:
    """Fill in ``l4`` and ``l4_bad`` for the TCP and UDP frames among ``candidates``.

    ``optional``: UDP may do without a checksum.
    """
    at = 2 * l4_word
    fits = (l4_length >= 8) & (l4_length + at <= lengths)
    udp = candidates & fits & (protocol == _UDP)
    tcp = candidates & fits & (protocol == _TCP) & (l4_length >= 20)
    rows = np.flatnonzero(udp | tcp)
    if not rows.size:
        return
    is_udp = udp[rows]
    size = l4_length[rows]
    octets = (frames.shape[1] - at) // 4 * 4
    sums = _payload_sums(frames[:, at : at + octets].view("<u4"), rows, size)
    words = found.head
    if l4_word + 8 >= _HEAD_WORDS:
        words = np.zeros((l4_word + 9, lengths.size), np.uint32)
        words[:_HEAD_WORDS] = found.head
        words[l4_word:, rows] = frames[rows, at : at + 18].view(">u2").T
    field = np.where(is_udp, words[l4_word + 3, rows], words[l4_word + 8, rows]).astype(np.uint64)
    pseudo = words[address_words][:, rows].sum(axis=0, dtype=np.uint64)
    pseudo += size.astype(np.uint64) + protocol[rows]
    # The right value of the field is the complement of the sum without the field.
    # 0 and 65535 are equivalent here; UDP reserves 0 for "no checksum".
    right = _ONES - (sums + _ONES - field + pseudo) % _ONES
    todo = unfinished[rows]
    absent = is_udp & (field == 0) & optional
    wrong = ~todo & ~absent & (field % _ONES != right % _ONES)
    found.l4[rows] = np.where(is_udp, L4_UDP, L4_TCP)
    found.l4_bad[rows] = wrong
    if todo.any():
        for of_udp, word in ((True, l4_word + 3), (False, l4_word + 8)):
            here = todo & (is_udp == of_udp)
            if here.any():
                frames[:, 2 * word : 2 * word + 2].view(">u2")[rows[here], 0] = right[here]


def pad(frames: Octets, lengths: Int64s) -> Int64s:
    """Pad short frames to the Ethernet minimum with zeros; returns the new lengths."""
    shortest = int(lengths.min())
    if shortest >= ETH_ZLEN:
        return lengths
    if shortest == int(lengths.max()):
        frames[:, shortest:ETH_ZLEN] = 0
        return np.full_like(lengths, ETH_ZLEN)
    rows = np.flatnonzero(lengths < ETH_ZLEN)
    keep = np.arange(ETH_ZLEN) < lengths[rows, None]
    frames[rows, :ETH_ZLEN] *= keep
    return np.maximum(lengths, ETH_ZLEN)


def _ones_sum(data: bytes | bytearray) -> int:
    """The ones' complement sum of 16-bit words, modulo 65535."""
    if len(data) & 1:
        data = data + b"\0"
    return int.from_bytes(data, "big") % 0xFFFF


def finish_checksums(frame: bytearray, *, ip: bool, l4: bool) -> bool:
    """Write the IPv4 header checksum and/or the TCP or UDP checksum of one frame.

    Returns whether an L4 checksum was written. A malformed frame is not changed.
    """
    at = ETH_HLEN
    if len(frame) < at + 20:
        return False
    ethertype = int.from_bytes(frame[12:14], "big")
    while ethertype in _TPIDS and len(frame) >= at + 24:
        ethertype = int.from_bytes(frame[at + 2 : at + 4], "big")
        at += 4
    if ethertype == _ETH_P_IP and frame[at] >> 4 == 4:
        start = at + (frame[at] & 15) * 4
        end = at + int.from_bytes(frame[at + 2 : at + 4], "big")
        protocol = frame[at + 9]
        addresses = bytes(frame[at + 12 : at + 20])
        if not at + 20 <= start <= len(frame):
            return False
        if ip:
            frame[at + 10 : at + 12] = b"\0\0"
            value = _ones_sum(frame[at:start]) ^ 0xFFFF
            frame[at + 10 : at + 12] = value.to_bytes(2, "big")
        if not start <= end <= len(frame):
            return False
        if int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF:
            return False
    elif ethertype == _ETH_P_IPV6 and frame[at] >> 4 == 6 and len(frame) >= at + 40:
        start = at + 40
        end = start + int.from_bytes(frame[at + 4 : at + 6], "big")
        protocol = frame[at + 6]
        addresses = bytes(frame[at + 8 : at + 40])
        if end > len(frame):
            return False
        while protocol in _IP6_OPTIONS and start + 8 <= end:
            if protocol == _NEXT_ROUTING and frame[start + 3]:
                return False  # the checksum covers an address in the routing header
            protocol, start = frame[start], start + 8 * (frame[start + 1] + 1)
        if start > end:
            return False
    else:
        return False
    field = start + {_TCP: 16, _UDP: 6}.get(protocol, len(frame))
    if not l4 or field + 2 > end:
        return False
    frame[field : field + 2] = b"\0\0"
    pseudo = addresses + bytes((0, protocol)) + (end - start).to_bytes(4, "big")
    value = (_ones_sum(pseudo) + _ones_sum(frame[start:end])) % 0xFFFF ^ 0xFFFF
    if protocol == _UDP and value == 0:
        value = 0xFFFF
    frame[field : field + 2] = value.to_bytes(2, "big")
    return True

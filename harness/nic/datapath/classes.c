/* SPDX-License-Identifier: MIT
 *
 * Packet classes and Internet checksums: what offload.py does, for one frame.
 */
#include "datapath.h"

#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_IPV6 0x86DD
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define NEXT_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_OPTIONS 60

/* Bit numbers in a receive event. */
#define RX_IPCKSUM_ERR 25
#define RX_TCPUDP_CKSUM_ERR 26
#define RX_MAC_CLASS 35
#define RX_ETH_TAG_CLASS 39
#define RX_L3_CLASS 42
#define RX_L4_CLASS 45

struct l4 {
	uint32_t at, octets;	/* from the transport header on */
	uint32_t protocol;
	const uint8_t *addresses;
	uint32_t addresses_octets;
	int udp_needs_checksum;
};

static int is_tag(uint32_t ethertype)
{
	return ethertype == 0x8100 || ethertype == 0x88A8;
}

/* The sum of 16-bit words modulo 65535, in network order; an odd octet is padded with 0. */
static uint32_t ones_sum(const uint8_t *data, uint32_t octets)
{
	uint64_t sum = 0;
	uint32_t dwords = octets / 4, dword, rest = 0, at;

	for (at = 0; at < dwords; at++) {
		memcpy(&dword, data + 4 * (size_t)at, 4);
		sum += dword;
	}
	memcpy(&rest, data + 4 * (size_t)dwords, octets & 3);
	sum = (sum + rest) % 0xFFFF;
	/* The words were summed in host order. */
	return (uint32_t)(sum * 256 % 0xFFFF);
}

static uint32_t pseudo_sum(const struct l4 *l4)
{
	return ones_sum(l4->addresses, l4->addresses_octets) + l4->octets + l4->protocol;
}

/* Verify or finish the checksum of TCP or UDP; returns the L4 class. */
static int layer4(uint8_t *frame, const struct l4 *l4, int unfinished, int *bad)
{
	int udp = l4->protocol == PROTOCOL_UDP;
	uint8_t *field_at;
	uint32_t field, sum, right;

	if (!udp && l4->protocol != PROTOCOL_TCP)
		return L4_UNKNOWN;
	field_at = frame + l4->at + (udp ? 6 : 16);
	field = word_be(field_at);
	sum = ones_sum(frame + l4->at, l4->octets) + 0xFFFF - field + pseudo_sum(l4);
	/* 0 and 65535 are equivalent here; UDP reserves 0 for "no checksum". */
	right = 0xFFFF - sum % 0xFFFF;
	if (unfinished)
		word_be_write(field_at, right);
	else if (!udp || field || l4->udp_needs_checksum)
		*bad = field % 0xFFFF != right % 0xFFFF;
	return udp ? L4_UDP : L4_TCP;
}

static int l4_fits(const struct l4 *l4, int64_t octets, uint32_t length)
{
	return octets >= (l4->protocol == PROTOCOL_TCP ? 20 : 8) && octets + l4->at <= length;
}

/* A frame without tags: fills in ``found`` and returns the L3 class. */
static int ip4(uint8_t *frame, uint32_t length, int unfinished, struct class *found, int *l4_class,
	       int *ip_bad, int *l4_bad)
{
	uint32_t header = (frame[14] & 15) * 4;
	int fragment = (word_be(frame + 20) & 0x3FFF) != 0;
	int64_t octets = (int64_t)word_be(frame + 16) - header;
	struct l4 l4 = {
		.at = ETH_HLEN + header, .protocol = frame[23], .addresses = frame + 26,
		.addresses_octets = 8,
	};

	found->addresses = l4.addresses;
	found->addresses_octets = l4.addresses_octets;
	if (header >= 20 && l4.at <= length) {
		*ip_bad = ones_sum(frame + ETH_HLEN, header) != 0;
		if (!fragment && !*ip_bad && l4_fits(&l4, octets, length)) {
			l4.octets = (uint32_t)octets;
			*l4_class = layer4(frame, &l4, unfinished, l4_bad);
			found->ports = frame + l4.at;
		}
	}
	return fragment ? L3_IP4_FRAG : L3_IP4;
}

static int ip6(uint8_t *frame, uint32_t length, int unfinished, struct class *found, int *l4_class,
	       int *l4_bad)
{
	uint32_t octets = word_be(frame + 18);
	struct l4 l4 = {
		.at = ETH_HLEN + 40, .octets = octets, .protocol = frame[20],
		.addresses = frame + 22, .addresses_octets = 32, .udp_needs_checksum = 1,
	};

	found->addresses = l4.addresses;
	found->addresses_octets = l4.addresses_octets;
	if (l4_fits(&l4, octets, length)) {
		*l4_class = layer4(frame, &l4, unfinished, l4_bad);
		found->ports = frame + l4.at;
	}
	return l4.protocol == NEXT_FRAGMENT ? L3_IP6_FRAG : L3_IP6;
}

/*
 * Parse one frame of at least ETH_ZLEN octets, and finish or verify its checksums. Skips up to two
 * VLAN tags and IPv4 options, but not IPv6 extension headers.
 */
void parse(uint8_t *frame, uint32_t length, int unfinished, struct class *found)
{
	uint8_t *inner = frame;
	int tags = 0, l3 = L3_UNKNOWN, l4 = L4_UNKNOWN, ip_bad = 0, l4_bad = 0;
	uint32_t ethertype, left = length;

	found->mac = (uint64_t)word_be(frame) << 32 | word_be(frame + 2) << 16 | word_be(frame + 4);
	found->multicast = frame[0] & 1;
	found->addresses = found->ports = NULL;
	found->addresses_octets = found->ports_octets = 0;
	while (tags < 2 && is_tag(word_be(inner + 12))) {
		inner += 4;
		left -= 4;
		tags++;
	}
	ethertype = word_be(inner + 12);
	if (ethertype == ETH_P_ARP)
		l3 = L3_ARP;
	else if (ethertype == ETH_P_IP && inner[14] >> 4 == 4)
		l3 = ip4(inner, left, unfinished, found, &l4, &ip_bad, &l4_bad);
	else if (ethertype == ETH_P_IPV6 && inner[14] >> 4 == 6 && left >= ETH_HLEN + 40)
		l3 = ip6(inner, left, unfinished, found, &l4, &l4_bad);
	if (l4 == L4_TCP)
		found->ports_octets = 4;
	if (unfinished && l4 == L4_UNKNOWN)
		finish_checksums(frame, length, 0, 1);
	found->event = (uint64_t)l3 << RX_L3_CLASS | (uint64_t)l4 << RX_L4_CLASS |
		       (uint64_t)found->multicast << RX_MAC_CLASS |
		       (uint64_t)tags << RX_ETH_TAG_CLASS | (uint64_t)ip_bad << RX_IPCKSUM_ERR |
		       (uint64_t)l4_bad << RX_TCPUDP_CKSUM_ERR;
}

/* Skip options between an IPv6 header and the transport header; 0: it cannot be done. */
static int skip_options(const uint8_t *frame, struct l4 *l4, uint32_t end)
{
	while ((l4->protocol == NEXT_HOP || l4->protocol == NEXT_ROUTING ||
		l4->protocol == NEXT_OPTIONS) && l4->at + 8 <= end) {
		/* The checksum covers an address in a routing header that is in use. */
		if (l4->protocol == NEXT_ROUTING && frame[l4->at + 3])
			return 0;
		l4->protocol = frame[l4->at];
		l4->at += 8 * (frame[l4->at + 1] + 1u);
	}
	return l4->at <= end;
}

/* Find the transport header of a frame to send, and finish its IPv4 header; 0: there is none. */
static int transport(uint8_t *frame, uint32_t length, int ip, struct l4 *l4)
{
	uint32_t at = ETH_HLEN, ethertype, end;

	if (length < at + 20)
		return 0;
	ethertype = word_be(frame + 12);
	while (is_tag(ethertype) && length >= at + 24) {
		ethertype = word_be(frame + at + 2);
		at += 4;
	}
	if (ethertype == ETH_P_IP && frame[at] >> 4 == 4) {
		l4->at = at + (frame[at] & 15) * 4;
		end = at + word_be(frame + at + 2);
		l4->protocol = frame[at + 9];
		l4->addresses = frame + at + 12;
		l4->addresses_octets = 8;
		if (l4->at < at + 20 || l4->at > length)
			return 0;
		if (ip) {
			word_be_write(frame + at + 10, 0);
			word_be_write(frame + at + 10, ones_sum(frame + at, l4->at - at) ^ 0xFFFF);
		}
		if (end < l4->at || end > length || word_be(frame + at + 6) & 0x3FFF)
			return 0;
	} else if (ethertype == ETH_P_IPV6 && frame[at] >> 4 == 6 && length >= at + 40) {
		l4->at = at + 40;
		end = l4->at + word_be(frame + at + 4);
		l4->protocol = frame[at + 6];
		l4->addresses = frame + at + 8;
		l4->addresses_octets = 32;
		if (end > length || !skip_options(frame, l4, end))
			return 0;
	} else {
		return 0;
	}
	l4->octets = end - l4->at;
	return 1;
}

/*
 * Write the IPv4 header checksum and/or the TCP or UDP checksum of one frame; returns whether an
 * L4 checksum was written. A malformed frame is not changed.
 */
int finish_checksums(uint8_t *frame, uint32_t length, int ip, int l4)
{
	struct l4 found = {0};
	uint32_t field, value;

	if (!transport(frame, length, ip, &found) || !l4)
		return 0;
	if (found.protocol == PROTOCOL_TCP)
		field = 16;
	else if (found.protocol == PROTOCOL_UDP)
		field = 6;
	else
		return 0;
	if (field + 2 > found.octets)
		return 0;
	word_be_write(frame + found.at + field, 0);
	value = (ones_sum(frame + found.at, found.octets) + pseudo_sum(&found)) % 0xFFFF ^ 0xFFFF;
	/* UDP reserves 0 for "no checksum"; 65535 is equivalent. */
	if (found.protocol == PROTOCOL_UDP && !value)
		value = 0xFFFF;
	word_be_write(frame + found.at + field, value);
	return 1;
}

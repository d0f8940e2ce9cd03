/* SPDX-License-Identifier: MIT
 *
 * The compiled data path of the virtual EF10: what it shares with the Python objects.
 *
 * Every structure belongs to a Python object (the classes of __init__.py repeat the fields), which
 * also keeps alive whatever it points to. No pointer into the guest is kept from one call to the
 * next: rings and buffers are looked up in the segments at each use. A qword that the guest wrote
 * is read once, and checked in the copy.
 */
#ifndef DATAPATH_H
#define DATAPATH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the formats of the NIC are little-endian, and this code does not convert them"
#endif

#define PREFIX 14		/* octets of a receive prefix, in front of the frame */
#define ETH_HLEN 14
#define ETH_ZLEN 60
#define ETH_FCS_LEN 4
#define MAX_TX_FRAME 16384	/* octets of a frame that is gathered */
#define MAX_VIS 1024
#define EMPTY_EVENT (~(uint64_t)0)

enum { L3_UNKNOWN = 0, L3_IP4 = 1, L3_IP6 = 2, L3_IP4_FRAG = 4, L3_ARP = 5, L3_IP6_FRAG = 6 };
enum { L4_UNKNOWN = 0, L4_TCP = 1, L4_UDP = 2 };

struct segment {
	uint64_t start, end;	/* guest addresses */
	uint8_t *octets;	/* NULL: not accessible */
	uint64_t writable;
};

struct memory {
	const struct segment *segments;	/* sorted, without overlaps */
	uint64_t count;
};

struct evq {
	uint64_t start;
	uint32_t mask, wptr;
	uint32_t armed, live;
	uint32_t due;		/* it was armed when it got an event in this call */
	uint32_t overrun, unmapped;	/* what went wrong in this call */
	uint32_t unused;
	uint8_t *ring;		/* in this call */
};

struct rxq {
	struct evq *evq;
	uint64_t start;
	uint64_t label;		/* in its place in an event */
	uint32_t mask, wptr, rptr;
	uint32_t scatter;
	uint32_t buffer;	/* octets of a descriptor's buffer, as last seen */
	uint32_t instance;
	uint32_t state;		/* in this batch: see receive.c */
	uint32_t unused;
	const uint8_t *ring;	/* in this batch */
};

struct txq {
	struct evq *evq;
	uint64_t start;
	uint64_t label;		/* in its place in an event */
	uint32_t mask, wptr, rptr;
	uint32_t ip_csum, l4_csum;
	uint32_t broken;	/* a part of the frame that is being gathered is missing */
	uint32_t gathered;	/* octets of it */
	uint32_t unused;
	uint8_t frame[MAX_TX_FRAME];
};

struct rss {
	const int64_t *table;	/* 128 queues */
	const uint32_t *key;	/* for each position of an octet, what each of 256 values adds */
};

struct filter {
	uint64_t match, mac;
	int64_t queue;		/* DROP, or the first of its RSS context */
	const struct rss *rss;
};

/* Frames in equal slots, in the layout of TPACKET_V2. */
struct slots {
	uint8_t *buffer;
	uint32_t number, octets;	/* of slots, of a slot */
	uint32_t head, tail;
};

/* What a call did: counts, and the first address that was not guest memory. */
struct outcome {
	uint64_t frames, delivered, nodesc, filtered, oversize;
	uint64_t truncated, bad_buffers, bad_address, rx_unmapped;
	uint64_t evq_unmapped, evq_overrun;
	uint64_t due;		/* an armed event queue got events */
	uint64_t blocked;	/* frames wait for descriptors */
	uint64_t busy_changed;
};

struct staged {
	struct evq *evq;
	uint64_t event;
};

#define STAGED 4096

struct receiver {
	const struct memory *memory;
	uint64_t *stats;	/* of the MAC, by qword index */
	const struct filter *filters;	/* in the order of their precedence */
	uint32_t filters_count;
	uint32_t max_frame;	/* with FCS */
	uint32_t busy_count, staged_count;
	struct outcome outcome;
	struct rxq *rxqs[MAX_VIS];	/* by instance; NULL: none */
	uint32_t busy[MAX_VIS];	/* instances of the queues that the last batch went to */
	struct staged staged[STAGED];
};

/* The parser's results for one frame. */
struct class {
	uint64_t mac;
	uint64_t event;		/* its class fields */
	const uint8_t *addresses;	/* what RSS hashes: addresses, … */
	const uint8_t *ports;		/* … and ports, if it is TCP */
	uint32_t addresses_octets, ports_octets;
	int multicast;
};

#define STAGE_FRAMES 256

/* Frames that a transmit queue has sent. */
struct stage {
	uint64_t count;
	uint64_t dropped, bad_buffers, bad_address, bad_options, bad_option, unmapped;
	uint64_t evq_unmapped, evq_overrun, due;
	uint64_t done;		/* nothing is left of what was asked for */
	uint64_t used;		/* octets of data */
	uint32_t offsets[STAGE_FRAMES];
	uint32_t lengths[STAGE_FRAMES];
	uint8_t data[STAGE_FRAMES * 2048];
};

/* Frames with their prefixes for one queue: ``count`` of ``wrap`` from ``first`` on, in a circle. */
struct deliverable {
	const uint8_t *buffer;
	const int64_t *offsets;	/* NULL: one every ``distance`` octets */
	const int64_t *lengths;	/* with prefix */
	const uint64_t *events;	/* their class fields */
	int64_t distance;
	uint64_t first, wrap, count;
};

#define MAX_WRITES 1024

/* A split virtqueue, whose areas are mapped as long as it lives, and the writes taken from it. */
struct vq {
	const uint8_t *desc, *avail;
	uint8_t *used;
	uint64_t last_register;	/* the highest offset of a dword in the BAR */
	uint32_t size;		/* a power of two */
	uint32_t taken, given;	/* indices modulo 65536 */
	uint32_t count;
	uint32_t offsets[MAX_WRITES], values[MAX_WRITES];
};

/* guest.c */
uint8_t *guest(const struct memory *memory, uint64_t start, uint64_t octets, int write);
int evq_push(const struct memory *memory, struct evq *evq, uint64_t event);
void evq_settle(struct evq *evq, struct outcome *outcome);

/* classes.c */
void parse(uint8_t *frame, uint32_t length, int unfinished, struct class *found);
int finish_checksums(uint8_t *frame, uint32_t length, int ip, int l4);

/* Qwords of the guest may lie anywhere; each is read and written by one instruction. */
typedef uint64_t __attribute__((aligned(1), may_alias)) guest_qword;

static inline uint64_t qword_read(const uint8_t *at)
{
	return *(const volatile guest_qword *)at;
}

static inline void qword_write(uint8_t *at, uint64_t value)
{
	*(volatile guest_qword *)at = value;
}

static inline uint32_t word_be(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}

static inline void word_be_write(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * The transmit path: from descriptors to frames with their checksums finished, and to the wire.
 */
#define _GNU_SOURCE
#include <sys/socket.h>

#include "datapath.h"

#define IS_OPTION(descriptor) ((descriptor) >> 63)
#define OPTION_TYPE(descriptor) ((descriptor) >> 60 & 7)
#define OPTION_CSUM 0
#define OPTION_IP_CSUM(descriptor) ((descriptor) & 1)
#define OPTION_L4_CSUM(descriptor) ((descriptor) >> 1 & 1)
#define CONT(descriptor) ((descriptor) >> 62 & 1)
#define OCTETS(descriptor) ((uint32_t)((descriptor) >> 48) & 0x3FFF)
#define ADDRESS(descriptor) ((descriptor) & ((1ull << 48) - 1))
#define EV_CODE_TX (2ull << 60)

#define SLOT_LEN 4
#define SLOT_SNAPLEN 8
#define SLOT_MAC_OFFSET 12
#define SLOT_MAC 66
#define TP_STATUS_USER 1

/* MC_CMD_MAC_* qword indices: see stats.py. */
#define STAT_TX_PKTS 0x01
#define STAT_TX_UNICAST 0x04
#define STAT_TX_MULTICAST 0x05
#define STAT_TX_BROADCAST 0x06
#define STAT_TX_BYTES 0x07
#define STAT_TX_SIZES 0x09

static void option(struct txq *txq, struct stage *stage, uint64_t descriptor)
{
	if (OPTION_TYPE(descriptor) == OPTION_CSUM) {
		txq->ip_csum = OPTION_IP_CSUM(descriptor);
		txq->l4_csum = OPTION_L4_CSUM(descriptor);
	} else if (!stage->bad_options++) {
		stage->bad_option = descriptor;
	}
}

/* Append the octets of a descriptor to ``frame``, which is in the stage. */
static void gather(const struct memory *memory, struct txq *txq, struct stage *stage,
		   uint8_t *frame, uint64_t descriptor)
{
	uint32_t octets = OCTETS(descriptor);
	const uint8_t *from = NULL;

	if (txq->gathered + octets <= MAX_TX_FRAME)
		from = guest(memory, ADDRESS(descriptor), octets, 0);
	if (from) {
		memcpy(frame + txq->gathered, from, octets);
		txq->gathered += octets;
	} else {
		txq->broken = 1;
		if (!stage->bad_buffers++)
			stage->bad_address = ADDRESS(descriptor);
	}
}

static void finish(struct txq *txq, struct stage *stage, uint8_t *frame)
{
	uint32_t length = txq->gathered;

	if (txq->broken || length < ETH_HLEN) {
		stage->dropped++;
	} else {
		if (txq->ip_csum || txq->l4_csum)
			finish_checksums(frame, length, txq->ip_csum, txq->l4_csum);
		if (length < ETH_ZLEN) {
			memset(frame + length, 0, ETH_ZLEN - length);
			length = ETH_ZLEN;
		}
		stage->offsets[stage->count] = (uint32_t)stage->used;
		stage->lengths[stage->count++] = length;
		stage->used += length;
	}
	txq->broken = txq->gathered = 0;
}

/*
 * Stage the frames of up to ``limit`` descriptors; returns how many were used. Unless the stage was
 * full before (``done`` is 0), one event completes them and those of the calls before.
 */
uint64_t datapath_transmit(const struct memory *memory, struct txq *txq, struct stage *stage,
			   uint64_t limit)
{
	uint32_t posted = (txq->wptr - txq->rptr) & txq->mask;
	const uint8_t *ring;
	struct outcome ignored;
	uint64_t number = 0;

	memset(stage, 0, offsetof(struct stage, offsets));
	if (limit > posted)
		limit = posted;
	stage->done = 1;
	if (!limit)
		return 0;
	ring = guest(memory, txq->start, ((uint64_t)txq->mask + 1) * 8, 0);
	if (!ring) {
		stage->unmapped = 1;
		txq->rptr = txq->wptr;
		return limit;
	}
	memcpy(stage->data, txq->frame, txq->gathered);
	while (number < limit && stage->count < STAGE_FRAMES &&
	       stage->used + MAX_TX_FRAME <= sizeof(stage->data)) {
		uint8_t *frame = stage->data + stage->used;
		uint64_t descriptor = qword_read(ring + 8 * (uint64_t)txq->rptr);

		txq->rptr = (txq->rptr + 1) & txq->mask;
		number++;
		if (IS_OPTION(descriptor)) {
			option(txq, stage, descriptor);
			continue;
		}
		gather(memory, txq, stage, frame, descriptor);
		if (!CONT(descriptor))
			finish(txq, stage, frame);
	}
	memcpy(txq->frame, stage->data + stage->used, txq->gathered);
	stage->done = number == limit;
	if (stage->done) {
		uint64_t last = (txq->rptr - 1) & txq->mask;

		stage->due = (uint64_t)evq_push(memory, txq->evq,
						EV_CODE_TX | txq->label | (last & 0xFFFF));
		memset(&ignored, 0, sizeof(ignored));
		evq_settle(txq->evq, &ignored);
		stage->evq_unmapped = ignored.evq_unmapped;
		stage->evq_overrun = ignored.evq_overrun;
	}
	return number;
}

/* Count staged frames from ``first`` on, ``number`` of them, as sent. */
void datapath_count_sent(uint64_t *stats, const struct stage *stage, uint64_t first, uint64_t number)
{
	static const uint32_t limits[] = {63, 64, 127, 255, 511, 1023, 1518, 9600};
	uint64_t index;
	uint32_t bin;

	for (index = first; index < first + number && index < stage->count; index++) {
		const uint8_t *frame = stage->data + stage->offsets[index];
		uint32_t octets = stage->lengths[index] + ETH_FCS_LEN;

		stats[STAT_TX_PKTS]++;
		if (!(frame[0] & 1))
			stats[STAT_TX_UNICAST]++;
		else if (memcmp(frame, "\xff\xff\xff\xff\xff\xff", 6) == 0)
			stats[STAT_TX_BROADCAST]++;
		else
			stats[STAT_TX_MULTICAST]++;
		stats[STAT_TX_BYTES] += octets;
		for (bin = 0; bin < sizeof(limits) / sizeof(*limits); bin++) {
			if (octets <= limits[bin]) {
				stats[STAT_TX_SIZES + bin]++;
				break;
			}
		}
	}
}

/* Send the staged frames from ``first`` on through a packet socket; returns how many it accepted
 * before it refused one. */
uint64_t datapath_send(int fd, const struct stage *stage, uint64_t first)
{
	uint64_t index;

	for (index = first; index < stage->count; index++)
		if (send(fd, stage->data + stage->offsets[index], stage->lengths[index],
			 MSG_DONTWAIT) < 0)
			break;
	return index - first;
}

/* Put the staged frames into free slots, as the kernel would; returns how many found one. */
uint64_t datapath_put(struct slots *slots, const struct stage *stage)
{
	uint64_t index;

	for (index = 0; index < stage->count; index++) {
		uint8_t *slot = slots->buffer + (uint64_t)slots->tail * slots->octets;
		uint32_t length = stage->lengths[index], kept = slots->octets - SLOT_MAC;
		uint16_t offset = SLOT_MAC;

		if (__atomic_load_n((uint32_t *)slot, __ATOMIC_ACQUIRE))
			break;
		if (kept > length)
			kept = length;
		memcpy(slot + SLOT_MAC, stage->data + stage->offsets[index], kept);
		memcpy(slot + SLOT_LEN, &length, 4);
		memcpy(slot + SLOT_SNAPLEN, &kept, 4);
		memcpy(slot + SLOT_MAC_OFFSET, &offset, 2);
		__atomic_store_n((uint32_t *)slot, TP_STATUS_USER, __ATOMIC_RELEASE);
		slots->tail = (slots->tail + 1) % slots->number;
	}
	return index;
}

/* SPDX-License-Identifier: MIT
 *
 * The receive path: from the slots of the wire to buffers and events. What receive.py, steering.py
 * and queues.py do for a batch is done here frame by frame; the order of batches is the same.
 */
#include "datapath.h"

/* TPACKET_V2: see wire.py. */
#define SLOT_LEN 4
#define SLOT_SNAPLEN 8
#define SLOT_TCI 24
#define SLOT_TPID 26
#define SLOT_MAC 66
#define TP_STATUS_KERNEL 0
#define TP_STATUS_CSUMNOTREADY (1u << 3)
#define TP_STATUS_VLAN_VALID (1u << 4)
#define TP_STATUS_VLAN_TPID_VALID (1u << 6)
#define PKTLEN_OFFSET 8

#define BATCH 1024
#define AHEAD 4		/* buffers of a queue that are being fetched to the cache */
#define WORTHWHILE 8
#define ALL_FRAMES (~(uint64_t)0)

#define MATCH_DST_MAC (1ull << 4)
#define MATCH_UNKNOWN_MCAST_DST (1ull << 30)
#define RSS_TABLE 128
#define DROP (-1)

/* Of a receive descriptor and a receive event. */
#define ADDRESS(descriptor) ((descriptor) & ((1ull << 48) - 1))
#define ROOM(descriptor) ((uint32_t)((descriptor) >> 48) & 0x3FFF)
#define RX_BYTES 0x3FFF
#define RX_CONT 14
#define RX_DSC_PTR_LBITS 48
#define LEAST_BUFFER 64

/* MC_CMD_MAC_* qword indices: see stats.py. */
#define STAT_RX_PKTS 0x1C
#define STAT_RX_GOOD 0x1E
#define STAT_RX_UNICAST 0x20
#define STAT_RX_MULTICAST 0x21
#define STAT_RX_BROADCAST 0x22
#define STAT_RX_BYTES 0x23
#define STAT_RX_SIZES 0x25
#define STAT_RX_GTJUMBO 0x2C
#define STAT_RX_JABBER 0x35
#define STAT_RX_NODESC 0x36
#define BROADCAST 0xFFFFFFFFFFFFull

/* States of a receive queue in a batch. */
enum { UNSEEN, OPEN, FULL };

struct slot {
	uint8_t *at;
	uint32_t status, length, captured;
};

static uint32_t posted(const struct rxq *rxq)
{
	return (rxq->wptr - rxq->rptr) & rxq->mask;
}

static void flush(struct receiver *receiver)
{
	const struct staged *staged = receiver->staged;
	uint32_t index;

	/* The driver looks at a frame when it sees its event. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	for (index = 0; index < receiver->staged_count; index++)
		if (evq_push(receiver->memory, staged[index].evq, staged[index].event))
			receiver->outcome.due = 1;
	for (index = 0; index < receiver->staged_count; index++)
		if (!index || staged[index].evq != staged[index - 1].evq)
			evq_settle(staged[index].evq, &receiver->outcome);
	receiver->staged_count = 0;
}

/* The next descriptor but ``ahead`` of a queue. */
static uint64_t descriptor(const struct rxq *rxq, uint32_t ahead)
{
	return qword_read(rxq->ring + 8 * (uint64_t)((rxq->rptr + ahead) & rxq->mask));
}

/* How many descriptors a frame takes; 0: fewer are posted. */
static uint32_t pieces(const struct rxq *rxq, uint64_t length)
{
	uint32_t limit = posted(rxq), number, room;

	for (number = 0; number < limit;) {
		room = ROOM(descriptor(rxq, number++));
		if (!rxq->scatter || room >= length)
			return number;
		length -= room;
	}
	return 0;
}

/* Begin to fetch the buffer of a descriptor that is used soon. */
static void prefetch_buffer(const struct receiver *receiver, const struct rxq *rxq)
{
	const uint8_t *to;

	if (posted(rxq) <= AHEAD)
		return;
	to = guest(receiver->memory, ADDRESS(descriptor(rxq, AHEAD)), 128, 1);
	if (to) {
		__builtin_prefetch(to, 1);
		__builtin_prefetch(to + 64, 1);
	}
}

/* Write prefix and frame to the next descriptors, and stage their events; 0: they are too few. */
static int deliver(struct receiver *receiver, struct rxq *rxq, const uint8_t *data, uint64_t length,
		   uint64_t event)
{
	uint32_t number = pieces(rxq, length), index;

	prefetch_buffer(receiver, rxq);
	for (index = 0; index < number; index++) {
		/* Read again, so it may be another one now. */
		uint64_t next = descriptor(rxq, 0), size = ROOM(next);
		uint8_t *to;

		if (size > length)
			size = length;
		else if (size < length && index + 1 == number)
			receiver->outcome.truncated++;
		to = guest(receiver->memory, ADDRESS(next), size, 1);
		if (to)
			memcpy(to, data, size);
		else if (!receiver->outcome.bad_buffers++)
			receiver->outcome.bad_address = ADDRESS(next);
		data += size;
		length -= size;
		rxq->rptr = (rxq->rptr + 1) & rxq->mask;
		if (receiver->staged_count == STAGED)
			flush(receiver);
		receiver->staged[receiver->staged_count++] = (struct staged){
			rxq->evq,
			event | rxq->label | (size & RX_BYTES) |
				(uint64_t)(index + 1 < number) << RX_CONT |
				(uint64_t)(rxq->rptr & 15) << RX_DSC_PTR_LBITS,
		};
	}
	return number != 0;
}

/* Begin to use a queue in this batch. */
static void open_queue(struct receiver *receiver, struct rxq *rxq)
{
	uint32_t size;

	rxq->state = FULL;
	if (!posted(rxq))
		return;
	rxq->ring = guest(receiver->memory, rxq->start, ((uint64_t)rxq->mask + 1) * 8, 0);
	if (!rxq->ring) {
		receiver->outcome.rx_unmapped++;
		return;
	}
	rxq->state = OPEN;
	/* The driver posts buffers of one size. */
	size = ROOM(descriptor(rxq, 0));
	rxq->buffer = size < LEAST_BUFFER ? LEAST_BUFFER : size;
}

static void close_queue(struct rxq *rxq)
{
	rxq->state = UNSEEN;
	rxq->ring = NULL;
}

static uint32_t toeplitz(const struct rss *rss, const struct class *found)
{
	const uint32_t *key = rss->key;
	uint32_t hash = 0, at;

	for (at = 0; at < found->addresses_octets; at++, key += 256)
		hash ^= key[found->addresses[at]];
	for (at = 0; at < found->ports_octets; at++, key += 256)
		hash ^= key[found->ports[at]];
	return hash;
}

/* The queue of a frame, or DROP, and its hash. Filters are in the order of their precedence. */
static int64_t steer(const struct receiver *receiver, const struct class *found, uint32_t *hash)
{
	uint32_t index;

	*hash = 0;
	for (index = 0; index < receiver->filters_count; index++) {
		const struct filter *filter = &receiver->filters[index];
		int hit = filter->match == MATCH_DST_MAC
				  ? filter->mac == found->mac
				  : (filter->match == MATCH_UNKNOWN_MCAST_DST) == found->multicast;

		if (!hit)
			continue;
		if (filter->queue == DROP || !filter->rss)
			return filter->queue;
		*hash = toeplitz(filter->rss, found);
		return filter->queue + filter->rss->table[*hash % RSS_TABLE];
	}
	return DROP;
}

static void count_received(uint64_t *stats, const struct class *found, uint32_t length)
{
	static const uint32_t limits[] = {64, 127, 255, 511, 1023, 1518, 9600};
	uint32_t octets = length + ETH_FCS_LEN, bin;

	stats[STAT_RX_PKTS]++;
	stats[STAT_RX_GOOD]++;
	if (!found->multicast)
		stats[STAT_RX_UNICAST]++;
	else
		stats[found->mac == BROADCAST ? STAT_RX_BROADCAST : STAT_RX_MULTICAST]++;
	stats[STAT_RX_BYTES] += octets;
	for (bin = 0; bin < sizeof(limits) / sizeof(*limits); bin++) {
		if (octets <= limits[bin]) {
			stats[STAT_RX_SIZES + bin]++;
			break;
		}
	}
}

static struct slot slot_of(const struct slots *slots, uint32_t number)
{
	struct slot slot = {.at = slots->buffer + (uint64_t)number * slots->octets};

	slot.status = __atomic_load_n((uint32_t *)slot.at, __ATOMIC_ACQUIRE);
	memcpy(&slot.length, slot.at + SLOT_LEN, 4);
	memcpy(&slot.captured, slot.at + SLOT_SNAPLEN, 4);
	return slot;
}

static int alike(struct slot one, struct slot other)
{
	return one.status == other.status && one.length == other.length &&
	       one.captured == other.captured;
}

/*
 * The size of the next batch, at most ``limit``: if several frames of one length come first, only
 * those are taken (SlotRing.take).
 */
static uint32_t batch_size(const struct slots *slots, uint64_t limit)
{
	uint32_t most = slots->number - slots->head, waiting, lead = 0;
	struct slot first = slot_of(slots, slots->head);

	if (most > limit)
		most = (uint32_t)limit;
	for (waiting = 0; waiting < most; waiting++) {
		struct slot slot = slot_of(slots, slots->head + waiting);

		if (slot.status == TP_STATUS_KERNEL)
			break;
		if (lead == waiting && alike(first, slot))
			lead++;
		else if (lead >= WORTHWHILE)
			break;
	}
	return lead >= WORTHWHILE || waiting <= WORTHWHILE ? lead : waiting;
}

/* Put back the VLAN tag that the kernel removed from a frame. */
static void restore_tag(const struct slots *slots, struct slot *slot)
{
	uint8_t *frame = slot->at + SLOT_MAC;
	uint16_t tci, tpid = 0x8100;

	if ((uint64_t)slot->captured + 4 > slots->octets - SLOT_MAC)
		return;
	memcpy(&tci, slot->at + SLOT_TCI, 2);
	if (slot->status & TP_STATUS_VLAN_TPID_VALID)
		memcpy(&tpid, slot->at + SLOT_TPID, 2);
	if (slot->captured > 12)
		memmove(frame + 16, frame + 12, slot->captured - 12);
	word_be_write(frame + 12, tpid);
	word_be_write(frame + 14, tci);
	slot->length += 4;
	slot->captured += 4;
}

static void take(struct receiver *receiver, const struct slots *slots, struct slot slot,
		 struct rxq **seen, uint32_t *seen_count)
{
	struct outcome *outcome = &receiver->outcome;
	uint8_t *frame = slot.at + SLOT_MAC;
	struct class found;
	struct rxq *rxq = NULL;
	uint32_t hash, length;
	uint16_t octets;
	int64_t queue;

	if (slot.status & TP_STATUS_VLAN_VALID)
		restore_tag(slots, &slot);
	length = slot.captured;
	if (length != slot.length || (uint64_t)length + ETH_FCS_LEN > receiver->max_frame ||
	    length > slots->octets - SLOT_MAC) {
		outcome->oversize++;
		receiver->stats[STAT_RX_PKTS]++;
		receiver->stats[STAT_RX_GTJUMBO]++;
		receiver->stats[STAT_RX_JABBER]++;
		return;
	}
	if (length < ETH_ZLEN) {
		memset(frame + length, 0, ETH_ZLEN - length);
		length = ETH_ZLEN;
	}
	parse(frame, length, (slot.status & TP_STATUS_CSUMNOTREADY) != 0, &found);
	count_received(receiver->stats, &found, length);
	queue = steer(receiver, &found, &hash);
	if (queue >= 0 && queue < MAX_VIS)
		rxq = receiver->rxqs[queue];
	if (!rxq) {
		outcome->filtered++;
		return;
	}
	if (rxq->state == UNSEEN) {
		open_queue(receiver, rxq);
		seen[(*seen_count)++] = rxq;
	}
	octets = (uint16_t)length;
	memcpy(frame - PREFIX, &hash, 4);
	memcpy(frame - PREFIX + PKTLEN_OFFSET, &octets, 2);
	if (rxq->state == OPEN &&
	    deliver(receiver, rxq, frame - PREFIX, length + PREFIX, found.event)) {
		outcome->delivered++;
	} else {
		rxq->state = FULL;
		outcome->nodesc++;
		receiver->stats[STAT_RX_NODESC]++;
	}
}

static void take_batch(struct receiver *receiver, struct slots *slots, uint32_t size)
{
	struct rxq *seen[MAX_VIS];
	uint32_t seen_count = 0, index;

	for (index = 0; index < size; index++) {
		struct slot slot = slot_of(slots, slots->head + index);

		take(receiver, slots, slot, seen, &seen_count);
		__atomic_store_n((uint32_t *)slot.at, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
	}
	flush(receiver);
	slots->head = (slots->head + size) % slots->number;
	if (seen_count && seen_count != receiver->busy_count)
		receiver->outcome.busy_changed = 1;
	for (index = 0; index < seen_count; index++) {
		if (receiver->busy[index] != seen[index]->instance)
			receiver->outcome.busy_changed = 1;
		receiver->busy[index] = seen[index]->instance;
		close_queue(seen[index]);
	}
	if (seen_count)
		receiver->busy_count = seen_count;
	receiver->outcome.frames += size;
}

/* How many frames the queues that were used last have room for. */
static uint64_t room(const struct receiver *receiver)
{
	uint64_t least = ALL_FRAMES;
	uint32_t index;

	for (index = 0; index < receiver->busy_count; index++) {
		const struct rxq *rxq = receiver->rxqs[receiver->busy[index]];
		uint64_t frames;

		if (!rxq)
			continue;
		frames = posted(rxq);
		if (receiver->max_frame > rxq->buffer)
			frames /= (receiver->max_frame + rxq->buffer - 1) / rxq->buffer;
		if (frames < least)
			least = frames;
	}
	return least;
}

/* Whether the outcome is more than frames that were delivered. */
static int special(const struct outcome *outcome)
{
	return outcome->frames != outcome->delivered || outcome->truncated || outcome->bad_buffers ||
	       outcome->rx_unmapped || outcome->evq_unmapped || outcome->evq_overrun ||
	       outcome->due || outcome->blocked || outcome->busy_changed;
}

/*
 * Receive at most ``limit`` frames, in batches; ends early after an event that interrupts. With
 * ``evict`` one batch is taken, whether there are descriptors or not. Returns how many there were
 * if that is all there is to say, else -1.
 */
int64_t datapath_receive(struct receiver *receiver, struct slots *slots, uint64_t limit, int evict)
{
	struct outcome *outcome = &receiver->outcome;

	memset(outcome, 0, sizeof(*outcome));
	while (outcome->frames < limit && !outcome->due) {
		uint64_t most = evict ? ALL_FRAMES : room(receiver);

		if (slot_of(slots, slots->head).status == TP_STATUS_KERNEL)
			break;
		if (!most) {
			outcome->blocked = 1;
			break;
		}
		if (most > limit - outcome->frames)
			most = limit - outcome->frames;
		take_batch(receiver, slots, batch_size(slots, most > BATCH ? BATCH : most));
		if (evict)
			break;
	}
	return special(outcome) ? -1 : (int64_t)outcome->frames;
}

/*
 * Deliver frames with their prefixes to one queue while there are descriptors: RxQueue.deliver.
 * Returns whether the outcome has more to say than how many were delivered.
 */
int datapath_deliver(struct receiver *receiver, struct rxq *rxq, const struct deliverable *frames)
{
	struct outcome *outcome = &receiver->outcome;
	uint64_t at = frames->first;

	memset(outcome, 0, sizeof(*outcome));
	open_queue(receiver, rxq);
	while (outcome->delivered < frames->count && rxq->state == OPEN) {
		int64_t offset = frames->offsets ? frames->offsets[at]
						 : (int64_t)at * frames->distance;

		if (!deliver(receiver, rxq, frames->buffer + offset, (uint64_t)frames->lengths[at],
			     frames->events[at]))
			break;
		outcome->delivered++;
		if (++at == frames->wrap)
			at = 0;
	}
	flush(receiver);
	close_queue(rxq);
	outcome->frames = outcome->delivered;
	outcome->due = 0;	/* the caller looks at its event queue */
	return special(outcome);
}

/* SPDX-License-Identifier: MIT
 *
 * Random guests, wires and filters for the compiled data path, to be compiled with sanitizers.
 * Every segment of guest memory and every buffer is an allocation of its own, so that an access
 * beyond one is found. A second thread writes to the guest's memory all the time, as a guest may.
 *
 *   datapath_fuzz SEED SECONDS      prints how many rounds it made
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "datapath.h"

int64_t datapath_receive(struct receiver *, struct slots *, uint64_t, int);
int datapath_deliver(struct receiver *, struct rxq *, const struct deliverable *);
uint64_t datapath_transmit(const struct memory *, struct txq *, struct stage *, uint64_t);
void datapath_count_sent(uint64_t *, const struct stage *, uint64_t, uint64_t);
uint64_t datapath_send(int, const struct stage *, uint64_t);
uint64_t datapath_put(struct slots *, const struct stage *);
uint32_t datapath_take_writes(struct vq *, const struct memory *, uint32_t);

#define SEGMENTS 6
#define QUEUES 5
#define KEY_WORDS (36 * 256)

static uint64_t state;
static struct segment segments[SEGMENTS];
static struct memory memory = {segments, SEGMENTS};
static struct receiver receiver;
static struct stage stage;
static struct evq evqs[QUEUES];
static struct rxq rxqs[QUEUES];
static struct txq txqs[QUEUES];
static struct filter filters[QUEUES];
static struct rss rss;
static struct slots wire, far;
static uint64_t stats[0x61];
static int stopping;

static uint64_t chance(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t below(uint64_t limit)
{
	return chance() % limit;
}

static void check(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "does not hold: %s\n", what);
		abort();
	}
}

static void *allocate(size_t octets)
{
	void *made = malloc(octets);

	check(made != NULL, "memory");
	return made;
}

static uint64_t address(void)
{
	const struct segment *near = &segments[below(SEGMENTS)];

	switch (below(8)) {
	case 0:
		return chance() & ((1ull << 48) - 1);
	case 1:
		return near->end - below(100);
	case 2:
		return near->start - below(100);
	default:
		return near->start + below(near->end - near->start);
	}
}

static void make_memory(void)
{
	uint64_t at = 4096, index;

	for (index = 0; index < SEGMENTS; index++) {
		uint64_t octets = 4096 * (1 + below(40)), byte;

		at += 4096 * below(3);
		segments[index] = (struct segment){at, at + octets, NULL, below(6) != 0};
		if (below(6)) {
			segments[index].octets = allocate(octets);
			for (byte = 0; byte < octets; byte += 8) {
				uint64_t value = chance();

				memcpy(segments[index].octets + byte, &value, 8);
			}
		}
		at += octets;
	}
}

static void make_queues(void)
{
	uint32_t index;

	memset(receiver.rxqs, 0, sizeof(receiver.rxqs));
	for (index = 0; index < QUEUES; index++) {
		struct evq *evq = &evqs[below(QUEUES)];
		uint32_t mask = (64u << below(7)) - 1;

		evqs[index] = (struct evq){.start = address() & ~4095ull, .mask = (64u << below(5)) - 1,
					   .armed = below(2), .live = below(8) != 0};
		evqs[index].wptr = (uint32_t)chance() & evqs[index].mask;
		rxqs[index] = (struct rxq){.evq = evq, .start = address() & ~4095ull,
					   .label = below(32) << 16, .mask = mask,
					   .wptr = (uint32_t)chance() & mask,
					   .rptr = (uint32_t)chance() & mask,
					   .scatter = below(3) != 0, .buffer = 16383,
					   .instance = index};
		if (below(6))
			receiver.rxqs[index] = &rxqs[index];
		txqs[index].evq = evq;
		txqs[index].start = address() & ~4095ull;
		txqs[index].label = below(32) << 16;
		txqs[index].mask = mask;
		txqs[index].wptr = (uint32_t)chance() & mask;
		txqs[index].rptr = (uint32_t)chance() & mask;
		txqs[index].gathered = (uint32_t)below(MAX_TX_FRAME + 1);
		receiver.busy[index] = index;
	}
	receiver.busy_count = (uint32_t)below(QUEUES + 1);
}

static void make_filters(void)
{
	int64_t *table = allocate(128 * sizeof(*table));
	uint32_t *key = allocate(KEY_WORDS * sizeof(*key)), index;
	static const uint64_t matches[] = {1ull << 4, 1ull << 30, 1ull << 31};

	for (index = 0; index < 128; index++)
		table[index] = (int64_t)below(below(2) ? QUEUES : 3000);
	for (index = 0; index < KEY_WORDS; index++)
		key[index] = (uint32_t)chance();
	rss = (struct rss){table, key};
	for (index = 0; index < QUEUES; index++)
		filters[index] = (struct filter){matches[below(3)], 0x020000000042,
						 (int64_t)below(QUEUES + 1) - 1,
						 below(2) ? &rss : NULL};
	receiver.filters = filters;
	receiver.filters_count = (uint32_t)below(QUEUES + 1);
}

static struct slots make_slots(void)
{
	struct slots made = {NULL, (uint32_t)(1 + below(64)), below(4) ? 1664 : 9536, 0, 0};

	made.buffer = allocate((size_t)made.number * made.octets);
	memset(made.buffer, 0, (size_t)made.number * made.octets);
	made.head = made.tail = (uint32_t)below(made.number);
	return made;
}

/* A descriptor that a driver might have posted, or not. */
static uint64_t descriptor(void)
{
	static const uint64_t sizes[] = {0, 1, 14, 60, 74, 256, 1792, 9000, 16383};

	if (!below(10))
		return chance();
	return address() | sizes[below(9)] << 48 | below(4) << 62;
}

static void scribble_ring(uint64_t start, uint32_t mask)
{
	uint8_t *ring = guest(&memory, start, ((uint64_t)mask + 1) * 8, 0);
	uint32_t number = (uint32_t)below(mask + 1), index;

	for (index = 0; ring && index < number; index++)
		qword_write(ring + 8 * (uint64_t)((uint32_t)chance() & mask), descriptor());
}

static void make_frame(uint8_t *frame, uint32_t octets)
{
	static const uint16_t types[] = {0x0800, 0x86DD, 0x8100, 0x88A8, 0x0806};
	uint32_t at = 12, index;

	for (index = 0; index < octets; index++)
		frame[index] = (uint8_t)(chance() >> 13);
	memcpy(frame, "\x02\0\0\0\0\x42", octets < 6 ? octets : 6);
	while (at + 2 <= octets) {
		uint16_t type = types[below(5)];

		word_be_write(frame + at, type);
		if (type != 0x8100 && type != 0x88A8)
			break;
		at += 4;
	}
	if (at + 42 > octets)
		return;
	at += 2;
	frame[at] = (uint8_t)(word_be(frame + at - 2) == 0x0800 ? 0x40 + below(16) : 0x60);
	if (below(4)) {
		word_be_write(frame + at + 2, octets - at - (uint32_t)below(30));
		word_be_write(frame + at + 4, octets - at - 40);
		word_be_write(frame + at + 6, below(4) ? 0 : (uint32_t)chance());
		frame[at + 9] = below(2) ? 6 : 17;
		frame[at + 6] = (uint8_t[]){6, 17, 0, 43, 44, 60}[below(6)];
	}
}

static void fill(struct slots *slots)
{
	uint32_t number = (uint32_t)below(slots->number + 1), same = (uint32_t)below(4) == 0, index;
	uint32_t most = slots->octets - 66;

	for (index = 0; index < number; index++) {
		uint8_t *slot = slots->buffer + (size_t)slots->tail * slots->octets;
		uint32_t captured = same ? 60 : (uint32_t)below(below(4) ? 200 : most + 1);
		uint32_t length = below(10) ? captured : (uint32_t)chance();
		uint32_t status = 1 | (same ? 0 : (uint32_t)chance() & 0x58);

		if (*(uint32_t *)slot)
			break;
		make_frame(slot + 66, captured);
		memcpy(slot + 4, &length, 4);
		memcpy(slot + 8, &captured, 4);
		memcpy(slot, &status, 4);
		slots->tail = (slots->tail + 1) % slots->number;
	}
}

static void receive(void)
{
	struct outcome *done = &receiver.outcome;

	fill(&wire);
	receiver.max_frame = below(2) ? 1518 : (uint32_t)(64 + below(9300));
	datapath_receive(&receiver, &wire, below(3000), below(8) == 0);
	check(done->frames == done->delivered + done->nodesc + done->filtered + done->oversize,
	      "every frame ends in one place");
	check(wire.head < wire.number, "the head of the wire");
}

static void deliver(void)
{
	uint64_t number = 1 + below(40), index;
	int64_t *offsets = allocate(number * 8), *lengths = allocate(number * 8), octets = 0;
	uint64_t *events = allocate(number * 8);
	uint8_t *buffer;
	struct deliverable frames = {.offsets = offsets, .lengths = lengths, .events = events,
				     .first = below(number), .wrap = number,
				     .count = below(2 * number)};

	for (index = 0; index < number; index++) {
		offsets[index] = octets;
		lengths[index] = (int64_t)(14 + below(below(4) ? 200 : 9000));
		events[index] = chance() & 0x0000640806000000;
		octets += lengths[index];
	}
	buffer = allocate((size_t)octets);
	memset(buffer, 0x5A, (size_t)octets);
	frames.buffer = buffer;
	if (below(2)) {
		frames.offsets = NULL;
		frames.distance = octets / (int64_t)number;
		for (index = 0; index < number; index++)
			lengths[index] = frames.distance;
	}
	datapath_deliver(&receiver, &rxqs[below(QUEUES)], &frames);
	check(receiver.outcome.delivered <= frames.count, "no more than there were");
	free(buffer);
	free(events);
	free(lengths);
	free(offsets);
}

static void transmit(void)
{
	struct txq *txq = &txqs[below(QUEUES)];
	uint64_t limit = below(300), used;

	do {
		used = datapath_transmit(&memory, txq, &stage, limit);
		check(used <= limit, "no more than was asked for");
		limit -= used;
		datapath_count_sent(stats, &stage, below(4), below(300));
		check(datapath_put(&far, &stage) <= stage.count, "no more than was staged");
		datapath_send(-1, &stage, 0);
	} while (!stage.done);
	check(txq->gathered <= MAX_TX_FRAME, "the part of a frame");
}

/* A virtqueue of posted writes, most of them as they should be. */
static void doorbells(void)
{
	static struct vq vq;
	uint32_t size = 1u << below(11), index;
	uint8_t *desc = allocate(16 * (size_t)size), *avail = allocate(4 + 2 * (size_t)size);

	vq.desc = desc;
	vq.avail = avail;
	vq.used = allocate(4 + 8 * (size_t)size);
	vq.size = size;
	vq.taken = (uint32_t)below(65536);
	vq.given = (uint32_t)below(65536);
	vq.last_register = (8 << 20) - 4;
	for (index = 0; index < size; index++) {
		uint16_t head = (uint16_t)(below(20) ? below(size) : chance());
		uint16_t flags[2] = {(uint16_t)(below(20) ? 0 : below(4)), (uint16_t)chance()};
		uint32_t octets = below(20) ? 20 : (uint32_t)below(64);
		uint64_t from = address(), offset = below(4) * 8192 + (below(9) ? 0x830 : chance());
		uint32_t header[2] = {below(20) ? 0x0204 : (uint32_t)chance(), 4};
		uint8_t *to = guest(&memory, from, 20, 1);

		memcpy(avail + 4 + 2 * index, &head, 2);
		memcpy(desc + 16 * index, &from, 8);
		memcpy(desc + 16 * index + 8, &octets, 4);
		memcpy(desc + 16 * index + 12, flags, 4);
		if (to) {
			memcpy(to, header, 8);
			memcpy(to + 8, &offset, 8);
		}
	}
	for (index = 0; index < 4; index++)
		check(datapath_take_writes(&vq, &memory, (uint32_t)below(size + 1)) <= size &&
			      vq.count <= size, "no more writes than the queue has");
	free(vq.used);
	free(avail);
	free(desc);
}

static void *scribble(void *unused)
{
	uint64_t turn = 1;

	while (!__atomic_load_n(&stopping, __ATOMIC_RELAXED)) {
		const struct segment *segment = &segments[turn % SEGMENTS];
		uint64_t octets = segment->end - segment->start;

		turn = turn * 6364136223846793005ull + 1442695040888963407ull;
		if (segment->octets)
			qword_write(segment->octets + (turn >> 20) % (octets - 8), turn * 3);
	}
	return unused;
}

static void round_of(void)
{
	pthread_t other;
	uint64_t steps = 20 + below(60), index;

	make_memory();
	make_queues();
	make_filters();
	wire = make_slots();
	far = make_slots();
	receiver.memory = &memory;
	receiver.stats = stats;
	stopping = 0;
	check(pthread_create(&other, NULL, scribble, NULL) == 0, "a thread");
	while (steps--) {
		index = below(QUEUES);
		scribble_ring(rxqs[index].start, rxqs[index].mask);
		scribble_ring(txqs[index].start, txqs[index].mask);
		rxqs[index].wptr = (uint32_t)chance() & rxqs[index].mask;
		txqs[index].wptr = (uint32_t)chance() & txqs[index].mask;
		switch (below(5)) {
		case 0:
			deliver();
			break;
		case 2:
			doorbells();
			break;
		case 1:
			transmit();
			break;
		default:
			receive();
		}
	}
	__atomic_store_n(&stopping, 1, __ATOMIC_RELAXED);
	pthread_join(other, NULL);
	for (index = 0; index < SEGMENTS; index++)
		free(segments[index].octets);
	free((void *)rss.table);
	free((void *)rss.key);
	free(wire.buffer);
	free(far.buffer);
}

int main(int count, char **arguments)
{
	uint64_t rounds = 0;
	time_t end;

	check(count == 3, "usage: datapath_fuzz SEED SECONDS");
	state = strtoull(arguments[1], NULL, 10) * 2654435769u + 1;
	end = time(NULL) + atol(arguments[2]);
	while (time(NULL) < end) {
		round_of();
		rounds++;
	}
	printf("%llu\n", (unsigned long long)rounds);
	return 0;
}

/* SPDX-License-Identifier: MIT
 *
 * Guest memory, and event queues in it.
 */
#include "datapath.h"

/* The place of ``octets`` octets from ``start`` on; NULL unless all are in one segment. */
uint8_t *guest(const struct memory *memory, uint64_t start, uint64_t octets, int write)
{
	uint64_t low = 0, high = memory->count;
	const struct segment *found;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (memory->segments[middle].start <= start)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return NULL;
	found = &memory->segments[low - 1];
	if (!found->octets || start > found->end || octets > found->end - start)
		return NULL;
	if (write && !found->writable)
		return NULL;
	return found->octets + (start - found->start);
}

/* Write one event by one store; returns whether the driver waits for an interrupt. */
int evq_push(const struct memory *memory, struct evq *evq, uint64_t event)
{
	uint8_t *at;

	if (!evq->live)
		return 0;
	if (!evq->ring) {
		evq->ring = guest(memory, evq->start, ((uint64_t)evq->mask + 1) * 8, 1);
		if (!evq->ring) {
			evq->unmapped = 1;
			return 0;
		}
	}
	at = evq->ring + (uint64_t)evq->wptr * 8;
	if (qword_read(at) != EMPTY_EVENT)
		evq->overrun = 1;
	qword_write(at, event);
	evq->wptr = (evq->wptr + 1) & evq->mask;
	if (evq->armed)
		evq->due = 1;
	return evq->armed != 0;
}

/* Move what went wrong to ``outcome``, and forget the ring. */
void evq_settle(struct evq *evq, struct outcome *outcome)
{
	outcome->evq_unmapped += evq->unmapped;
	outcome->evq_overrun += evq->overrun;
	evq->unmapped = evq->overrun = 0;
	evq->ring = NULL;
}

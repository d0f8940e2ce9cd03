/* SPDX-License-Identifier: MIT
 *
 * The doorbells of a user-mode kernel: posted writes of a dword, which it puts into a virtqueue.
 * Anything else is left there for virtqueue.py and pcidev.py.
 */
#include "datapath.h"

#define VI_STRIDE 8192
#define EVQ_RPTR 0x400
#define RX_DESC_UPD 0x830
#define TX_DESC_UPD_DWORD 0xA18

/* A message of virtio_pcidev.h, with the value to write. */
#define MESSAGE_OCTETS 20
#define MMIO_WRITE 4
#define BAR2 2

static uint32_t load16(const uint8_t *at)
{
	uint16_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static uint32_t load32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

/* Whether of several writes only the last one counts. */
static int last_counts(uint32_t offset)
{
	offset %= VI_STRIDE;
	return offset == EVQ_RPTR || offset == RX_DESC_UPD || offset == TX_DESC_UPD_DWORD;
}

/* Copy the next message; 0 if it is none, or not a posted write of a dword to BAR2. */
static int message(const struct vq *vq, const struct memory *memory, uint32_t *head,
		   uint8_t *copy)
{
	uint8_t descriptor[16];
	const uint8_t *from;
	uint64_t address;

	*head = load16(vq->avail + 4 + 2 * (vq->taken & (vq->size - 1)));
	if (*head >= vq->size)
		return 0;
	memcpy(descriptor, vq->desc + 16 * *head, sizeof(descriptor));
	memcpy(&address, descriptor, sizeof(address));
	if (load32(descriptor + 8) != MESSAGE_OCTETS || load16(descriptor + 12) ||
	    address >= 1ull << 48)
		return 0;
	from = guest(memory, address, MESSAGE_OCTETS, 0);
	if (!from)
		return 0;
	memcpy(copy, from, MESSAGE_OCTETS);
	memcpy(&address, copy + 8, sizeof(address));
	return copy[0] == MMIO_WRITE && copy[1] == BAR2 && load32(copy + 4) == 4 &&
	       address <= vq->last_register;
}

/* Keep only the last of several writes of a doorbell, unless there are other registers. */
static void merge(struct vq *vq)
{
	uint32_t kept = 0, index, at;

	for (index = 0; index < vq->count; index++)
		if (!last_counts(vq->offsets[index]))
			return;
	for (index = 0; index < vq->count; index++) {
		for (at = 0; at < kept && vq->offsets[at] != vq->offsets[index]; at++)
			;
		if (at == kept)
			vq->offsets[kept++] = vq->offsets[index];
		vq->values[at] = vq->values[index];
	}
	vq->count = kept;
}

/*
 * Take at most ``limit`` posted writes from the queue, up to the first message of another kind, and
 * give their buffers back. Returns how many; what is left to write is in the queue's structure.
 */
uint32_t datapath_take_writes(struct vq *vq, const struct memory *memory, uint32_t limit)
{
	uint8_t copy[MESSAGE_OCTETS];
	uint32_t number = 0, head, used[2] = {0, 0};
	uint16_t given;

	if (limit > MAX_WRITES)
		limit = MAX_WRITES;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	while (number < limit && message(vq, memory, &head, copy)) {
		vq->offsets[number] = load32(copy + 8);
		vq->values[number++] = load32(copy + 16);
		vq->taken = (vq->taken + 1) & 0xFFFF;
		used[0] = head;
		memcpy(vq->used + 4 + 8 * (vq->given & (vq->size - 1)), used, sizeof(used));
		vq->given = (vq->given + 1) & 0xFFFF;
	}
	vq->count = number;
	if (number) {
		given = (uint16_t)vq->given;
		__atomic_thread_fence(__ATOMIC_RELEASE);
		memcpy(vq->used + 2, &given, sizeof(given));
		merge(vq);
	}
	return number;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where a CPU is in the kernel, at the moments of a perf event. The event's context
 * begins with the registers at that moment. User space counts as address 0.
 */
#ifndef PROBES_KERNEL_TYPES_H
#include <asm/ptrace.h>
#endif

BPF_HASH(sampled, u64, u64, 65536);

int sample(struct pt_regs *ctx)
{
	u64 ip = ctx->ip;

	if (!(ip >> 63))
		ip = 0;
	sampled.increment(ip);
	return 0;
}

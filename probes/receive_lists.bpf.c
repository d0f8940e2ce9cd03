// SPDX-License-Identifier: GPL-2.0-only
/*
 * How long the lists of packets are at each stage of the receive path.
 *
 * A stage is a kernel function whose first argument is the head of a list of
 * packets, or one packet. Each has one handler, attached as fentry or as kprobe.
 * Nothing is counted until the loader writes an interface's index into `wanted`;
 * then only packets of that interface are. Counts are per CPU: the loader adds.
 */

/* The loader passes both offsets from the kernel's BTF, and the types this needs in
 * kernel_types.h. Where there is no BTF, or no x86-64, the kernel's own headers serve:
 * reading them takes longer than all the rest. */
#ifndef PROBES_KERNEL_TYPES_H
#include <asm/ptrace.h>
#endif
#ifndef SKB_DEV
#include <linux/netdevice.h>
#define SKB_DEV offsetof(struct sk_buff, dev)
#define DEV_IFINDEX offsetof(struct net_device, ifindex)
#endif

#define LONGEST_COUNTED 64 /* a NAPI poll takes no more than 64 packets */
#define LONGEST_WALKED 128
#define LIST_STAGES 5
#define SKB_STAGES 2

struct stage_counts {
	u64 calls;
	u64 packets;
	u64 cut; /* lists longer than the walk: their packets are not all counted */
	u64 min;
	u64 max;
	u64 lengths[LONGEST_COUNTED + 2]; /* by length; the last one holds all longer */
};

BPF_PERCPU_ARRAY(list_stages, struct stage_counts, LIST_STAGES);
BPF_PERCPU_ARRAY(skb_stages, u64, SKB_STAGES);
BPF_ARRAY(wanted, u32, 1);

static __always_inline u32 wanted_ifindex(void)
{
	int zero = 0;
	u32 *ifindex = wanted.lookup(&zero);

	return ifindex ? *ifindex : 0;
}

static __always_inline bool came_in_on(void *skb, u32 ifindex)
{
	void *dev = NULL;
	u32 index = 0;

	bpf_probe_read_kernel(&dev, sizeof(dev), skb + SKB_DEV);
	bpf_probe_read_kernel(&index, sizeof(index), dev + DEV_IFINDEX);
	return index == ifindex;
}

/* `next` is the first member of list_head, and `list` of sk_buff. */
static __always_inline void *next_of(void *node)
{
	void *next = NULL;

	bpf_probe_read_kernel(&next, sizeof(next), node);
	return next;
}

static __always_inline int count_list(int stage, void *head)
{
	struct stage_counts *counts;
	u32 ifindex = wanted_ifindex();
	void *node;
	u32 length = 0;
	int i;

	if (!ifindex)
		return 0;
	node = next_of(head);
	/* An empty list belongs to no interface and is counted whosever it is. */
	if (node != head && !came_in_on(node, ifindex))
		return 0;
	counts = list_stages.lookup(&stage);
	if (!counts)
		return 0;

#ifdef UNROLLED
#pragma unroll
#endif
	for (i = 0; i < LONGEST_WALKED; i++) {
		if (node == head || !node)
			break;
		length++;
		node = next_of(node);
	}

	if (node != head)
		counts->cut++;
	if (!counts->calls || length < counts->min)
		counts->min = length;
	if (length > counts->max)
		counts->max = length;
	counts->calls++;
	counts->packets += length;
	counts->lengths[length <= LONGEST_COUNTED ? length : LONGEST_COUNTED + 1]++;
	return 0;
}

static __always_inline int count_skb(int stage, void *skb)
{
	u32 ifindex = wanted_ifindex();
	u64 *count;

	if (!ifindex || !came_in_on(skb, ifindex))
		return 0;
	count = skb_stages.lookup(&stage);
	if (count)
		(*count)++;
	return 0;
}

/* KFUNC_PROBE is bcc's name for fentry. */
#define FENTRY(handler, index, function)                                       \
	KFUNC_PROBE(function, void *first)                                     \
	{                                                                      \
		return handler(index, first);                                  \
	}
/* Only where the loader found that fentry will not do. */
#ifdef KPROBES
#define STAGE(handler, index, function)                                        \
	FENTRY(handler, index, function)                                       \
	int kprobed_##function(struct pt_regs *ctx)                            \
	{                                                                      \
		return handler(index, (void *)PT_REGS_PARM1(ctx));             \
	}
#else
#define STAGE FENTRY
#endif

/* The loader reads these lines: a stage is added here and nowhere else. */
STAGE(count_list, 0, netif_receive_skb_list)
STAGE(count_list, 1, netif_receive_skb_list_internal)
STAGE(count_list, 2, __netif_receive_skb_list_core)
STAGE(count_list, 3, ip_list_rcv)
STAGE(count_list, 4, ip_sublist_rcv)
STAGE(count_skb, 0, ip_rcv)

/* Fires once for each packet whatever its way up: what the others must add up to. */
int tracepoint_netif_receive_skb(struct bpf_raw_tracepoint_args *ctx)
{
	return count_skb(1, (void *)ctx->args[0]);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * How long the lists of packets are at each stage of the receive path.
 *
 * A stage is a kernel function whose first argument is the head of a list of
 * packets, or one packet. Each has one handler, attached as fentry or as kprobe.
 * Nothing is counted until the loader writes an interface's index into `wanted`;
 * then only packets of that interface are. Counts are per CPU: the loader adds.
 *
 * With SESSION it is counted besides where lists are split, which queues they are
 * from and what is dropped. Trials are traced without.
 */

/* The loader passes these offsets from the kernel's BTF, and the types this needs in
 * kernel_types.h. Where there is no BTF, or no x86-64, the kernel's own headers serve:
 * reading them takes longer than all the rest. */
#ifndef PROBES_KERNEL_TYPES_H
#include <asm/ptrace.h>
#endif
#ifndef SKB_DEV
#include <linux/netdevice.h>
#define SKB_DEV offsetof(struct sk_buff, dev)
#define DEV_IFINDEX offsetof(struct net_device, ifindex)
#define SKB_QUEUE offsetof(struct sk_buff, queue_mapping)
#define SKB_IIF offsetof(struct sk_buff, skb_iif)
#endif

#define LONGEST_COUNTED 64 /* a NAPI poll takes no more than 64 packets */
#define LONGEST_WALKED 128
#define LIST_STAGES 7
#define SKB_STAGES 2
#define QUEUES 32

struct stage_counts {
	u64 calls;
	u64 packets;
	u64 cut; /* lists longer than the walk: their packets are not all counted */
	u64 min;
	u64 max;
	u64 lengths[LONGEST_COUNTED + 2]; /* by length; the last one holds all longer */
#ifdef SESSION
	u64 sublists; /* lists of the next stage that these became */
	u64 passed; /* packets on those */
	u64 splits[2]; /* sublists after a list's first: same device, another device */
	u64 queues[QUEUES + 1]; /* packets by queue; the last one holds all others */
#endif
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

#ifdef SESSION
/* The lists a CPU is in the middle of, a bit for each stage. */
struct nesting {
	u64 orig_dev; /* of the latest list that was told one */
	u32 open;
	u32 counted; /* those of them that belong to the wanted interface */
	u32 split; /* those of them of which a sublist was seen */
};

BPF_PERCPU_ARRAY(nestings, struct nesting, 1);

/* A list that enters a stage ends those at and below it. The lowest that is still open is
 * the one it is a part of, whatever stages the kernel has; its counts, if it has any.
 * Nothing is taken to be part of stage 0: a list may reach stage 1 without it. */
static __always_inline struct stage_counts *enter(int stage, bool ours, u64 orig_dev)
{
	int zero = 0, parent = 0;
	struct nesting *on = nestings.lookup(&zero);
	struct stage_counts *counts = NULL;
	u32 above = (1u << stage) - 1;

	if (!on || !stage)
		return NULL;
	on->open &= above;
	on->counted &= above;
	on->split &= above;
	/* No loop: compilers do not unroll it for the kernels that take none. */
	if (on->open & ~1u)
		parent = 31 - __builtin_clz(on->open);
	if (on->counted & 1u << parent) {
		counts = list_stages.lookup(&parent);
		if (counts) {
			counts->sublists++;
			if (on->split & 1u << parent)
				counts->splits[orig_dev && orig_dev != on->orig_dev]++;
		}
	}
	on->split |= 1u << parent;
	on->open |= 1u << stage;
	if (ours)
		on->counted |= 1u << stage;
	if (orig_dev)
		on->orig_dev = orig_dev;
	return counts;
}

static __always_inline void count_queue(struct stage_counts *counts, void *skb, u32 length)
{
	u16 mapping = 0; /* a queue's number and 1, or 0 where none was recorded */
	u32 queue;

	bpf_probe_read_kernel(&mapping, sizeof(mapping), skb + SKB_QUEUE);
	queue = (u16)(mapping - 1);
	counts->queues[queue < QUEUES ? queue : QUEUES] += length;
}
#endif

static __always_inline int count_list(int stage, void *head, u64 orig_dev)
{
	struct stage_counts *counts, *whole = NULL;
	u32 ifindex = wanted_ifindex();
	void *first, *node;
	u32 length = 0, bucket;
	bool ours;
	int i;

	if (!ifindex)
		return 0;
	first = node = next_of(head);
	/* An empty list belongs to no interface and is counted whosever it is. */
	ours = node == head || came_in_on(node, ifindex);
#ifdef SESSION
	if (node != head)
		whole = enter(stage, ours, orig_dev);
#endif
	if (!ours && !whole)
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

#ifdef SESSION
	if (whole)
		whole->passed += length;
	if (!ours)
		return 0;
	if (length)
		count_queue(counts, first, length);
#endif
	if (node != head)
		counts->cut++;
	if (!counts->calls || length < counts->min)
		counts->min = length;
	if (length > counts->max)
		counts->max = length;
	counts->calls++;
	counts->packets += length;
	bucket = length;
#ifdef UNROLLED
	/* Such a verifier knows the length at each exit of the walk, but not that it rules
	 * out one of the branches below; off the stack it is any number. */
	bucket = *(volatile u32 *)&bucket;
#endif
	counts->lengths[bucket <= LONGEST_COUNTED ? bucket : LONGEST_COUNTED + 1]++;
	return 0;
}

static __always_inline int count_skb(int stage, void *skb, u64 unused)
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

/* The third argument of those that take (head, packet type, orig_dev). */
#define TOLD_ORIG_DEV(index) ((index) == 3 || (index) == 4)

/* KFUNC_PROBE is bcc's name for fentry. */
#ifdef NO_FENTRY
#define FENTRY(handler, index, function)
#else
#define FENTRY(handler, index, function)                                       \
	KFUNC_PROBE(function, void *first)                                     \
	{                                                                      \
		return handler(index, first, TOLD_ORIG_DEV(index) ? ctx[2] : 0); \
	}
#endif
/* Only where the loader found that fentry will not do. */
#ifdef KPROBES
#define STAGE(handler, index, function)                                        \
	FENTRY(handler, index, function)                                       \
	int kprobed_##function(struct pt_regs *ctx)                            \
	{                                                                      \
		return handler(index, (void *)PT_REGS_PARM1(ctx),              \
			       TOLD_ORIG_DEV(index) ? PT_REGS_PARM3(ctx) : 0);  \
	}
#else
#define STAGE FENTRY
#endif
#ifdef SESSION
#define SESSION_STAGE STAGE
#else
#define SESSION_STAGE(handler, index, function)
#endif

/* The loader reads these lines: a stage is added here and nowhere else. Lists pass
 * through the stages in the order of their numbers. */
STAGE(count_list, 0, netif_receive_skb_list)
STAGE(count_list, 1, netif_receive_skb_list_internal)
STAGE(count_list, 2, __netif_receive_skb_list_core)
SESSION_STAGE(count_list, 3, __netif_receive_skb_list_ptype)
STAGE(count_list, 4, ip_list_rcv)
STAGE(count_list, 5, ip_sublist_rcv)
SESSION_STAGE(count_list, 6, ip_sublist_rcv_finish)
STAGE(count_skb, 0, ip_rcv)

/* Fires once for each packet whatever its way up: what the others must add up to. */
int tracepoint_netif_receive_skb(struct bpf_raw_tracepoint_args *ctx)
{
	return count_skb(1, (void *)ctx->args[0], 0);
}

#ifdef SESSION
struct drop {
	u64 location;
	u64 reason;
};

BPF_PERCPU_HASH(drops, struct drop, u64, 256);

int tracepoint_kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
	struct drop drop = {.location = ctx->args[1], .reason = (u32)ctx->args[2]};
	u32 ifindex = wanted_ifindex(), came_in = 0;
	u64 zero = 0, *count;

	/* Not skb->dev: a socket that drops a packet has another use for that word. */
	bpf_probe_read_kernel(&came_in, sizeof(came_in), (void *)ctx->args[0] + SKB_IIF);
	if (!ifindex || came_in != ifindex)
		return 0;
	count = drops.lookup_or_try_init(&drop, &zero);
	if (count)
		(*count)++;
	return 0;
}
#endif

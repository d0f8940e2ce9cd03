/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The probes as code in the process of a user-mode kernel, which has no BPF programs
 * on its functions. What bcc offers is defined here for a compiler; the kernel has one
 * CPU, so a table has one copy. The loader (harness/beds/native/detours.py) writes a
 * file that includes this one and a probe, has it linked to a fixed address, copies
 * it there, and lets functions of the kernel jump to its DETOURs.
 */
#define pt_regs saved_pt_regs
#include "kernel_types.h"
#undef pt_regs

/* The arguments of the function, as a detour saves them. */
struct pt_regs {
	unsigned long di, si, dx, cx;
};

#define PT_REGS_PARM1(ctx) ((ctx)->di)
#define PT_REGS_PARM3(ctx) ((ctx)->dx)

struct bpf_raw_tracepoint_args {
	u64 args[3];
};

/* No valid address is that low; BPF programs survive such a read, too. */
static __always_inline void bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	if ((unsigned long)from >= PAGE_SIZE)
		__builtin_memcpy(to, from, size);
}

#define BPF_ARRAY(name, type, size)                                            \
	type name##_table[size];                                               \
	static __always_inline type *name##_lookup(int *key)                   \
	{                                                                      \
		return &name##_table[*key];                                    \
	}                                                                      \
	static const struct {                                                  \
		type *(*lookup)(int *key);                                     \
	} name = {name##_lookup}
#define BPF_PERCPU_ARRAY BPF_ARRAY

/* Entries are never removed. An interrupt may make the same one twice; the reader adds. */
#define BPF_PERCPU_HASH(name, key_type, value_type, size)                      \
	struct {                                                               \
		key_type key;                                                  \
		value_type value;                                              \
	} name##_table[size];                                                  \
	unsigned int name##_used;                                              \
	static value_type *name##_find(key_type *key, value_type *first)       \
	{                                                                      \
		unsigned int i, used = name##_used;                            \
                                                                               \
		for (i = 0; i < used && i < size; i++)                         \
			if (!__builtin_memcmp(&name##_table[i].key, key, sizeof(*key))) \
				return &name##_table[i].value;                 \
		i = __atomic_fetch_add(&name##_used, 1, __ATOMIC_RELAXED);     \
		if (i >= size) {                                               \
			name##_used = size;                                    \
			return NULL;                                           \
		}                                                              \
		name##_table[i].key = *key;                                    \
		name##_table[i].value = *first;                                \
		return &name##_table[i].value;                                 \
	}                                                                      \
	static const struct {                                                  \
		value_type *(*lookup_or_try_init)(key_type *key, value_type *first); \
	} name = {name##_find}

/*
 * The code that a function jumps to: it calls the handler with the arguments, executes
 * the first instructions of the function, which the loader copies to moved_NAME, and
 * jumps back. `skip` bytes of the arguments are left out. Nothing is on the stack below
 * a function that is just being called, and flags have no meaning there.
 */
#define DETOUR(name, handler, skip)                                            \
	asm(".globl detour_" #name "\n"                                        \
	    "detour_" #name ":\n"                                              \
	    "push %r11; push %r10; push %r9; push %r8; push %rax\n"            \
	    "push %rcx; push %rdx; push %rsi; push %rdi\n"                     \
	    "lea " #skip "(%rsp), %rdi\n"                                      \
	    "call " #handler "\n"                                              \
	    "pop %rdi; pop %rsi; pop %rdx; pop %rcx\n"                         \
	    "pop %rax; pop %r8; pop %r9; pop %r10; pop %r11\n"                 \
	    ".globl moved_" #name "\n"                                         \
	    "moved_" #name ": .skip 32, 0xcc\n")

/* The counts at the first and the latest of two readings of the kernel's counters. */
#define MARK(lists, skbs)                                                      \
	struct {                                                               \
		char lists[sizeof(lists##_table)], skbs[sizeof(skbs##_table)]; \
	} marks[2];                                                            \
	unsigned int marked;                                                   \
	int mark(struct pt_regs *ctx)                                          \
	{                                                                      \
		int i = marked != 0;                                           \
                                                                               \
		__builtin_memcpy(marks[i].lists, lists##_table, sizeof(lists##_table)); \
		__builtin_memcpy(marks[i].skbs, skbs##_table, sizeof(skbs##_table)); \
		marked++;                                                      \
		return 0;                                                      \
	}

/* Compilers call these. */
void *memcpy(void *to, const void *from, size_t size)
{
	void *at = to;

	asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
	const unsigned char *one = a, *other = b;

	for (; size; size--, one++, other++)
		if (*one != *other)
			return *one < *other ? -1 : 1;
	return 0;
}

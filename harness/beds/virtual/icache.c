// SPDX-License-Identifier: GPL-2.0-only
/*
 * A QEMU plugin that counts the instructions a vCPU executes, and the cache lines they would
 * miss in an instruction cache: in total, and per translation block.
 *
 * The cache has 64 sets of 8 ways of 64 octets (32 KiB, as in most x86 cores), LRU, physical
 * addresses, no prefetch. It sees whole translation blocks: a block that an exception leaves
 * early counts as a whole.
 *
 * The counters are in a file that the guest sees as a PCI device (ivshmem-plain): struct page
 * below, little-endian. The guest writes `wanted`, a vCPU's number plus 1; the plugin reads
 * nothing else and writes all other fields. Blocks cost almost nothing on other vCPUs. When
 * `wanted` becomes 0, the plugin writes one line per block to a second file (address, runs,
 * instructions per run, misses), and then sets `counting` to 0.
 *
 * Arguments: counters=PATH, a file of at least one page, and blocks=PATH.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* The part of QEMU's plugin interface, version 7, that is used here (docs/devel/tcg-plugins.rst). */
#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_scoreboard;

typedef uint64_t qemu_plugin_id_t;
typedef struct {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
} qemu_plugin_u64;
typedef struct {
	const char *target_name;
	struct {
		int min;
		int cur;
	} version;
	bool system_emulation;
	union {
		struct {
			int smp_vcpus;
			int max_vcpus;
		} system;
	};
} qemu_info_t;

enum { QEMU_PLUGIN_CB_NO_REGS = 0, QEMU_PLUGIN_COND_NE = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
					   void (*cb)(struct qemu_plugin_tb *, void *),
					   void *userdata);
void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *tb,
					       void (*cb)(unsigned int, void *),
					       int flags, int cond,
					       qemu_plugin_u64 entry,
					       uint64_t imm, void *userdata);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb,
						 size_t index);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size);
void qemu_plugin_u64_set(qemu_plugin_u64 entry, unsigned int vcpu_index,
			 uint64_t value);
int qemu_plugin_num_vcpus(void);

EXPORT int qemu_plugin_version = 7;

enum { SETS = 64, WAYS = 8, LINE_SHIFT = 6 };
#define MAGIC 0x31686361636952ULL /* "Ricach1" */
#define LOOK_NS 1000000L
#define BLOCKS (1U << 21)

/* harness/agent/counters/emulated.py reads this. */
struct page {
	uint64_t magic;
	_Atomic uint64_t wanted;
	_Atomic uint64_t counting;
	_Atomic uint64_t uncounted; /* translated blocks that did not fit into the table */
	uint64_t octets;
	uint64_t ways;
	uint64_t line_octets;
	_Atomic uint64_t instructions;
	_Atomic uint64_t misses;
};

/* A translation block: its cache lines in one page, and in the next if it continues there. */
struct block {
	uintptr_t line[2];
	uint16_t lines[2];
	uint32_t instructions;
	uint64_t address;
	uint64_t runs;
	uint64_t misses;
};

static struct page *page;
static const char *listing;
static struct block *blocks;
static atomic_uint used;
static qemu_plugin_u64 counting;

/* State of the counted vCPU, protected by the lock. */
static pthread_spinlock_t lock;
static bool counted;
static uintptr_t cache[SETS][WAYS]; /* tags, the last used first; 0 is none */
static uint64_t instructions;
static uint64_t misses;

static bool missed(uintptr_t tags[WAYS], uintptr_t line)
{
	uintptr_t moved = tags[0];
	int way = 0;

	if (moved == line)
		return false;
	while (++way < WAYS) {
		uintptr_t tag = tags[way];

		tags[way] = moved;
		moved = tag;
		if (tag == line)
			break;
	}
	tags[0] = line;
	return way == WAYS;
}

static void executed(unsigned int index, void *data)
{
	struct block *block = data;
	uint64_t new = 0;

	(void)index;
	pthread_spin_lock(&lock);
	if (!counted) { /* counting stopped after this block was entered */
		pthread_spin_unlock(&lock);
		return;
	}
	for (int part = 0; part < 2; part++)
		for (int n = 0; n < block->lines[part]; n++) {
			uintptr_t line = block->line[part] + n;

			new += missed(cache[line % SETS], line);
		}
	block->runs++;
	block->misses += new;
	misses += new;
	instructions += block->instructions;
	atomic_store_explicit(&page->instructions, instructions, memory_order_relaxed);
	atomic_store_explicit(&page->misses, misses, memory_order_relaxed);
	pthread_spin_unlock(&lock);
}

static unsigned int known(void)
{
	unsigned int count = atomic_load(&used);

	return count < BLOCKS ? count : BLOCKS;
}

static void translated(struct qemu_plugin_tb *tb, void *unused)
{
	size_t count = qemu_plugin_tb_n_insns(tb);
	unsigned int number;
	struct block *block;
	int part = -1;

	(void)unused;
	number = known() < BLOCKS ? atomic_fetch_add(&used, 1) : BLOCKS;
	if (number >= BLOCKS) {
		atomic_fetch_add(&page->uncounted, 1);
		return;
	}
	block = &blocks[number];
	block->instructions = count;
	block->address = qemu_plugin_tb_vaddr(tb);
	for (size_t n = 0; n < count; n++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, n);
		uintptr_t at = (uintptr_t)qemu_plugin_insn_haddr(insn);
		uintptr_t first = at >> LINE_SHIFT;
		uintptr_t last = (at + qemu_plugin_insn_size(insn) - 1) >> LINE_SHIFT;

		if (!at)
			continue;
		if (part < 0 || first < block->line[part] ||
		    first > block->line[part] + block->lines[part]) {
			if (part == 1)
				continue;
			block->line[++part] = first;
		}
		block->lines[part] = last - block->line[part] + 1;
	}
	qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, executed, QEMU_PLUGIN_CB_NO_REGS,
						  QEMU_PLUGIN_COND_NE, counting, 0,
						  block);
}

static void list(void)
{
	FILE *out = fopen(listing, "w");

	if (!out)
		return;
	for (unsigned int n = 0; n < known(); n++)
		if (blocks[n].runs)
			fprintf(out, "%llx %llu %u %llu\n",
				(unsigned long long)blocks[n].address,
				(unsigned long long)blocks[n].runs,
				blocks[n].instructions,
				(unsigned long long)blocks[n].misses);
	fclose(out);
}

static void count(bool on)
{
	pthread_spin_lock(&lock);
	counted = on;
	pthread_spin_unlock(&lock);
}

/* Starts and stops counting as the guest asks. */
static void *look(void *unused)
{
	const struct timespec pause = { .tv_nsec = LOOK_NS };
	uint64_t now = 0;

	(void)unused;
	for (;; nanosleep(&pause, NULL)) {
		uint64_t wanted = atomic_load(&page->wanted);

		if (wanted == now || wanted > (uint64_t)qemu_plugin_num_vcpus())
			continue;
		if (now) {
			qemu_plugin_u64_set(counting, now - 1, 0);
			count(false);
			list();
		}
		for (unsigned int n = 0; n < known() && wanted; n++)
			blocks[n].runs = blocks[n].misses = 0;
		if (wanted) {
			count(true);
			qemu_plugin_u64_set(counting, wanted - 1, 1);
		}
		now = wanted;
		atomic_store(&page->counting, now);
	}
	return NULL;
}

static struct page *opened(const char *path)
{
	void *found = MAP_FAILED;
	int file = open(path, O_RDWR | O_CLOEXEC);

	if (file >= 0) {
		found = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE,
			     MAP_SHARED, file, 0);
		close(file);
	}
	return found == MAP_FAILED ? NULL : found;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
			       char **argv)
{
	const char *counters = "counters=", *listed = "blocks=";
	pthread_t thread;

	_Static_assert(sizeof(struct page) <= 4096, "it is one page of the guest");
	if (!info->system_emulation || argc != 2 ||
	    strncmp(argv[0], counters, strlen(counters)) ||
	    strncmp(argv[1], listed, strlen(listed))) {
		fprintf(stderr, "icache: needs system emulation and counters=PATH,blocks=PATH\n");
		return 1;
	}
	page = opened(argv[0] + strlen(counters));
	listing = strdup(argv[1] + strlen(listed));
	blocks = mmap(NULL, BLOCKS * sizeof(*blocks), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!page || !listing || blocks == MAP_FAILED) {
		perror("icache");
		return 1;
	}
	page->octets = SETS * WAYS << LINE_SHIFT;
	page->ways = WAYS;
	page->line_octets = 1 << LINE_SHIFT;
	page->magic = MAGIC;
	counting.score = qemu_plugin_scoreboard_new(sizeof(uint64_t));
	counting.offset = 0;
	pthread_spin_init(&lock, PTHREAD_PROCESS_PRIVATE);
	if (pthread_create(&thread, NULL, look, NULL))
		return 1;
	pthread_detach(thread);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	return 0;
}

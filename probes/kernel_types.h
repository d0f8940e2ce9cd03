/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * All that bcc and the probes take from a kernel's headers, so that none have to be
 * on the host. The loader hands it to bcc as a kernel tree's <linux/kconfig.h>, the
 * first file bcc reads, and leaves the other files bcc asks for empty.
 */
#ifndef PROBES_KERNEL_TYPES_H
#define PROBES_KERNEL_TYPES_H

#define CONFIG_BPF_SYSCALL 1
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define PAGE_SIZE 4096UL
#define NULL ((void *)0)
#define true 1
#define false 0
#define __always_inline inline __attribute__((always_inline))

typedef signed char s8, __s8;
typedef unsigned char u8, __u8;
typedef short s16, __s16;
typedef unsigned short u16, __u16, __be16, __le16, __sum16;
typedef int s32, __s32;
typedef unsigned int u32, __u32, __be32, __le32, __wsum;
typedef long long s64, __s64;
typedef unsigned long long u64, __u64, __be64, __le64;
typedef __u64 __attribute__((aligned(8))) __aligned_u64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef long ssize_t;
typedef int pid_t;

/* The registers of x86-64 in the order the kernel saves them. */
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

#endif

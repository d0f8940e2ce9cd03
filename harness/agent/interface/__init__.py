# SPDX-License-Identifier: MIT
"""A network interface: its driver, its place in the kernel, and its NIC."""

# SPDX-License-Identifier: MIT
"""Machines with a disk and a boot loader of their own, reached over ssh."""

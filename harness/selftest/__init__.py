# SPDX-License-Identifier: MIT
"""Guests that stand for machines, so that what works with machines is proven without any.

They boot from their own disk by their own boot loader, are reached by ssh alone
and switched by a power button; the harness is given a hosts file and no more.
"""

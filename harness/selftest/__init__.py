# SPDX-License-Identifier: MIT
"""Guests that behave like lab machines, so that beds of machines are tested without any.

They boot from their own disk by their own boot loader, are reached only by ssh, and have a
power button; the harness gets nothing but a hosts file.
"""

# SPDX-License-Identifier: MIT
"""A campaign under way: what is booted, loaded and measured, and its write-ahead journal."""

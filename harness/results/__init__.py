# SPDX-License-Identifier: MIT
"""Result directories: what is in them, what it amounts to, and what may be said of it."""

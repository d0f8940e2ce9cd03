# SPDX-License-Identifier: MIT
"""What all the rest stands on: errors and exit codes, programs, the cache, progress."""

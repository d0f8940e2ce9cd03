# SPDX-License-Identifier: MIT
"""Used by all other rooms: errors and exit codes, programs, the cache, progress."""

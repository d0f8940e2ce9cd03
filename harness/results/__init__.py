# SPDX-License-Identifier: MIT
"""Result directories: their files, the statistics over them, and the verdicts."""

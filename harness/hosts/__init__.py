# SPDX-License-Identifier: MIT
"""The hosts of a bed: brought up, reached, watched, and left as they were."""

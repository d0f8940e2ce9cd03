# SPDX-License-Identifier: MIT
"""How a host is reached: ssh, its pinned keys, and the line to the agent on it."""

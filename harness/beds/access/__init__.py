# SPDX-License-Identifier: MIT
"""How a host is reached: ssh, its pinned keys, and the connection to its agent."""

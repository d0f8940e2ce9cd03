# SPDX-License-Identifier: MIT
"""What beds on this machine have in common: the namespace that sends, and the NIC model."""

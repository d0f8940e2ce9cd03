# SPDX-License-Identifier: MIT
"""What beds on this machine share: the sending namespace, the NIC model, and their CPUs."""

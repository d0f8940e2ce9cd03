# SPDX-License-Identifier: MIT
"""An interface of a host: what its driver, the kernel and the card say of it."""

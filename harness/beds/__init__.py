# SPDX-License-Identifier: MIT
"""Where kernels are booted and reached: one folder a kind of bed, one interface for all."""

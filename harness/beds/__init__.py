# SPDX-License-Identifier: MIT
"""Where kernels are booted and reached: one folder per kind of bed, one interface for all."""

# SPDX-License-Identifier: MIT
"""Measures what listified packet receive does to a kernel.

Data flows one way: ``hosts.yaml`` → plan → kernels → hosts → settings, workload
and probes → samples → statistics → report. A module imports only what stands to
its left in that line.
"""

__version__ = "0.1.0"

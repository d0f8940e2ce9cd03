# SPDX-License-Identifier: MIT
"""The virtual EF10 against a miniature driver."""

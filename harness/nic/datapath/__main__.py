# SPDX-License-Identifier: MIT
"""``python -m harness.nic.datapath``: compile the data path."""

from __future__ import annotations

import sys

from harness.nic.datapath.build import BuildError, compile_library

if __name__ == "__main__":
    try:
        print(compile_library())
    except BuildError as failure:
        sys.exit(str(failure))

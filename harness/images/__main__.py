# SPDX-License-Identifier: MIT
"""Makes the guest image, and with the argument ``tools`` the tools root, for
:func:`harness.images.made_meanwhile`."""

from __future__ import annotations

import signal
import sys

from harness.base.progress import Progress
from harness.images import guest_image, tools

# As an interruption would: unfinished work is stopped and removed.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
with Progress(bars=False) as progress:
    with_tools = sys.argv[1:] == ["tools"]
    guest_image(progress, by_ssh=with_tools)
    if with_tools:
        tools(progress)

# SPDX-License-Identifier: MIT
"""Makes both images and ends: what :func:`harness.images.made_meanwhile` starts."""

from __future__ import annotations

import signal
import sys

from harness.base.progress import Progress
from harness.images import guest_image, tools

# Like an interruption: whatever was begun is ended and removed.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
with Progress(bars=False) as progress:
    guest_image(progress)
    tools(progress)

# SPDX-License-Identifier: MIT
"""What all tests share: an interrupt is one, however the tests were started.

A shell that runs something in the background has it ignore SIGINT, and whatever
that starts as well; the tests that interrupt a harness would then wait for ever.
"""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)

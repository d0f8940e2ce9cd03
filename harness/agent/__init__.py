# SPDX-License-Identifier: MIT
"""All that runs on a host: one process that speaks JSON lines over stdin and stdout.

It stands at the far end of the flow and imports nothing of the rest, so that the
host needs only its distribution's python3 with bcc, pyroute2 and psutil.
"""

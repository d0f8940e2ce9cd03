# SPDX-License-Identifier: MIT
"""Everything that runs on a host: one process that speaks JSON lines over stdin and stdout.

It imports nothing of the rest, so that the host needs only its distribution's python3 with
bcc, pyroute2 and psutil.
"""

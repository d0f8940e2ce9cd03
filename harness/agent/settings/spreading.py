# SPDX-License-Identifier: MIT
"""RPS and RFS: off, because they would spread the packets over CPUs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.agent import setting
from harness.agent.cpus import parse_mask
from harness.agent.inventory import NET
from harness.agent.setting import (
    Declaration,
    Setting,
    number,
    numbered,
    only_off,
    queue_files,
    write_each,
)


def _of_queues(
    name: str, file: str, same: Callable[[str, str], bool], **declared: Any
) -> Declaration:
    """A setting that is ``file`` of each receive queue; a queue that is gone is ignored."""

    def on(interface: str) -> Setting:
        queues = NET / interface / "queues"
        return Setting(
            name,
            lambda: queue_files(queues, file),
            lambda value: write_each(
                ((queues / queue / file, text) for queue, text in value.items()), same
            ),
            lambda is_now, wanted: all(
                same(is_now[queue], text) for queue, text in wanted.items() if queue in is_now
            ),
        )

    return Declaration(
        name,
        on,
        wanted=lambda now, _asked: dict.fromkeys(now, "0"),
        check=only_off,
        off_if_absent=True,
        plain=False,
        **declared,
    )


SETTINGS = (
    _of_queues(
        "rps",
        "rps_cpus",
        lambda one, other: parse_mask(one) == parse_mask(other),
        absent="the kernel has no RPS",
        title="receive packet steering",
        compared=True,
    ),
    _of_queues(
        "rfs",
        "rps_flow_cnt",
        lambda one, other: number(one) == number(other),
        absent="the kernel has no RFS",
        title="receive flow steering",
    ),
    numbered(
        "rps_sock_flow_entries",
        lambda _: setting.PROC_SYS / "net/core/rps_sock_flow_entries",
        wanted=lambda _now, _asked: 0,
        by="rfs",
        absent="the kernel has no RFS",
        off_if_absent=True,
    ),
)

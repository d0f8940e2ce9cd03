# SPDX-License-Identifier: MIT
"""The search for the highest rate that loses (nearly) nothing, as in RFC 2544, 26.1.

RFC 2544 takes the word of one trial for each rate. Here the rate found has to
pass again several times, and gives way to a lower one when it does not.
"""

from __future__ import annotations

from collections.abc import Callable

RESOLUTION = 0.03
_LEAST_PPS = 1000.0


def search(
    passes: Callable[[float], bool], first_pps: float, *, confirmations: int
) -> float | None:
    """The highest rate found that passes ``1 + confirmations`` times in a row, in packets/s.

    Begins at ``first_pps``, doubles or halves until a passing and a failing rate are
    known, and halves the ratio between them until it is :data:`RESOLUTION`.
    ``None`` when not even 1000 packets/s pass.
    """
    low, high = 0.0, 0.0
    rate = max(first_pps, _LEAST_PPS)
    while not (low and high):
        if passes(rate):
            low, rate = rate, 2 * rate
        else:
            if rate == _LEAST_PPS:
                return None
            high, rate = rate, max(rate / 2, _LEAST_PPS)
    while high / low > 1 + RESOLUTION:
        middle = (low * high) ** 0.5
        if passes(middle):
            low = middle
        else:
            high = middle
    lacking = confirmations
    while low >= _LEAST_PPS:
        if all(passes(low) for _ in range(lacking)):
            return low
        low, lacking = low / (1 + RESOLUTION), 1 + confirmations
    return None

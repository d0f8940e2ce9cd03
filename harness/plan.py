# SPDX-License-Identifier: MIT
"""What will be booted, in which order, and how long it is measured.

The profile and the order of boots are fixed before a host is touched, and are stored with
the result. Trials and their void rules are in ``harness.trials``. Blocks and positions
count from 1.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from harness import cells
from harness.base.errors import ConfigurationError

BASELINE = "0"
SERIES_STEPS = tuple(str(step) for step in range(9))
FIRST_STAIR = 10
"""An optional step with this number or a higher one includes the optional steps from here on."""
STAIRS = ("10", "11", "12", "13", "17", "18")
ALL_STEPS = ("0", "1", "2", "2m", "2v", *SERIES_STEPS[3:], "9", *STAIRS)
"""The steps of the series, and optional steps that not every base has."""
SHIPPED = "shipped"
"""The tree as it ships, without any patch. Not a step of the series, but named like one."""
DEFAULT_STEPS = f"0,2,8,{SHIPPED}"
AA_STEPS = (BASELINE, f"{BASELINE}again")
"""The baseline against itself: differences that such a campaign finds are noise of the bed."""
MIN_BLOCKS_FOR_VERDICT = 6
"""With fewer blocks no distribution-free 95 % interval exists: 2 · (1/2)^5 > 5 %."""

MAX_BLOCKS = 1000
"""More must be a typing error: three steps on machines would take a week and a half."""
MAX_LAYOUTS = 100

LIST_STAGES: Mapping[str, int] = MappingProxyType(
    {
        "netif_receive_skb_list": 2,
        "netif_receive_skb_list_internal": 4,
        "__netif_receive_skb_list_core": 5,
        "ip_list_rcv": 7,
    }
)
"""Functions that every packet passes in a list, and the first step in which it does."""
SINGLY_BEFORE = 7
"""The first step in which ``ip_rcv`` is not called for each packet."""

DESIGN = "2026-11"
"""Name of the design: how boots are planned and words are judged. A new layout each block,
families of comparisons and declared looks, which the design before (without a name) had not."""

LOOKS = ((7, 0.0157), (10, 0.0137), (14, 0.0166), (18, 0.0215))
"""Numbers of blocks after which a campaign with looks may end, each with the p-value that decides
there. All looks together are wrong in 4.4 % of campaigns: ``tests/bench/verdicts.py``."""

PACED_SHARES = (0.1, 0.5, 0.9)
"""Shares of the saturating rate at which CPU time per packet is measured."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How long to measure: ``blocks`` boots of each variant, the same trials in each."""

    name: str
    blocks: int
    warmups: int
    warmup_s: float
    trials: int
    window_s: float
    trace_blocks: int
    """Number of first blocks of a bed in which each boot has a trial with probes."""
    trace_s: float
    """Of a trial under the probes or an emulator's count, and of each rate of a search."""
    slice_s: float = 0.0
    """Boots of a block are up together, with time slices of this length; 0: one at a time."""
    layouts: int = 1
    """Number of layouts in which each kernel is linked: one for each block, because a layout
    that is used again is no new observation. Blocks use them in turn."""
    looks: tuple[tuple[int, float], ...] = ()
    """After how many blocks the campaign ends if its primary comparison is decided, and at which
    p-value; the last is all blocks. Empty: it never ends early."""
    extras: tuple[str, ...] = ()
    """What is also measured, by ``--also``."""
    paced_shares: tuple[float, ...] = PACED_SHARES
    """Shares of the rate that the receiver takes; empty if hosts.yaml names a rate."""


@dataclass(frozen=True)
class PlannedTrial:
    """One trial to run: its kind, its number among the trials of its kind, its length."""

    kind: str
    index: int
    duration_s: float
    share: float | None = None
    """The load as a share of the rate that the receiver takes."""


@dataclass(frozen=True)
class PlannedBoot:
    """One boot to do: ``step`` at ``position`` of ``block``."""

    block: int
    position: int
    step: str

    @property
    def directory(self) -> str:
        """The name of its directory under ``boots/`` of the result."""
        # Levels may be any text; block and position alone are unique.
        name = re.sub(r"[^\w+=.,-]+", "-", self.step)[:100].rstrip("-")
        return f"b{self.block:02d}-p{self.position:02d}-s{name}"


@dataclass(frozen=True)
class Shard:
    """Share ``number`` of ``of`` of a campaign's blocks: every ``of``-th, from ``number`` on."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/3``.

        Raises:
            ConfigurationError: it is none.
        """
        found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigurationError(
                f"{text!r:.40} is no shard", hint="write 2/3 for the second of three"
            )
        return cls(int(found[1]), int(found[2]))

    def has(self, block: int) -> bool:
        """Is ``block`` one of its blocks?"""
        return (block - self.number) % self.of == 0

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole campaign: which boots, in which order, under which profile."""

    profile: Profile
    steps: tuple[str, ...]
    seed: int
    order: tuple[tuple[str, ...], ...]
    block_beds: tuple[str, ...] = ()
    """The bed of each block; empty if there is only one bed."""
    baseline: str = BASELINE
    """What the others are compared with: step 0, or the first of some commits."""
    ranged: bool = False
    """Are its steps the commits of one range A..B, in their order?"""

    after: int = 0
    """How many of its blocks an earlier look has: they are not among the :meth:`groups`."""
    shard: Shard | None = None
    """The share of its blocks that is measured here; ``None``: all."""

    def shared(self, shard: Shard | None) -> Plan:
        """The same plan, of which ``shard`` is measured here.

        Raises:
            ConfigurationError: it cannot be shared, or has no block for this shard.
        """
        if shard is None:
            return self
        if self.profile.looks:
            raise ConfigurationError(
                f"the profile {self.profile.name} ends at declared looks at all blocks so far, "
                "which no shard has",
                hint="use --profile standard, with --blocks if you want more",
            )
        if self.block_beds:
            raise ConfigurationError(
                "--beds and --shard exclude each other: both spread the blocks",
                hint="give each shard one of the beds with --bed",
            )
        if shard.of > len(self.order):
            raise ConfigurationError(
                f"{len(self.order)} blocks cannot be shared by {shard.of}",
                hint=f"use fewer shards, or --blocks {shard.of} or more",
            )
        return replace(self, shard=shard)

    def until(self, look: int) -> Plan:
        """The part of it up to ``look``, a number of blocks, without that of the look before."""
        before = [blocks for blocks, _ in self.profile.looks if blocks < look]
        return replace(
            self,
            order=self.order[:look],
            block_beds=self.block_beds[:look],
            after=max(before, default=0),
        )

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many blocks it may end."""
        return tuple(blocks for blocks, _ in self.profile.looks) or (len(self.order),)

    @property
    def of_commits(self) -> bool:
        """Are its ``steps`` commits of a tree?"""
        return self.baseline != BASELINE

    @property
    def factors(self) -> dict[str, tuple[str, ...]]:
        """What is varied besides code: the levels of each factor."""
        return cells.factors_of(self.steps)

    @property
    def too_few_blocks(self) -> str | None:
        """Why it cannot end in verdicts, if it cannot."""
        if self.profile.looks:
            return None  # the primary comparison comes first and can be decided at each
        needed = blocks_for_verdict(self.steps, self.baseline, ranged=self.ranged)
        if len(self.order) >= needed:
            return None
        return f"no verdict: {len(self.order)} of the {needed} blocks it needs"

    def bed_of(self, block: int) -> str | None:
        """The bed of ``block``, if there are several beds."""
        return self.block_beds[block - 1] if self.block_beds else None

    def ordinal(self, block: int) -> int:
        """The number of ``block`` among the blocks of its bed, or of its shard."""
        if self.shard:
            return 1 + (block - self.shard.number) // self.shard.of
        bed = self.bed_of(block)
        return self.block_beds[:block].count(bed) if bed else block

    @property
    def layouts(self) -> int:
        """In how many layouts each step is linked; blocks use them in turn."""
        return min(self.profile.layouts, len(self.order))

    @property
    def blocks_of_a_bed(self) -> int:
        """The number of blocks of the bed that has most, or of the shard."""
        return max(self.ordinal(boot.block) for boot in self.boots())

    def boots(self) -> Iterator[PlannedBoot]:
        """Every boot in the planned order, or those of its shard."""
        return boots_of(self.order, self.shard)

    def groups(self, bed: str | None = None) -> Iterator[tuple[PlannedBoot, ...]]:
        """The boots, or those of ``bed``, in groups that are up together."""
        for block in range(self.after + 1, len(self.order) + 1):
            if bed and self.bed_of(block) not in (None, bed):
                continue
            boots = tuple(boot for boot in self.boots() if boot.block == block)
            if not boots:  # of another shard
                continue
            if self.profile.slice_s:
                yield boots
            else:
                yield from ((boot,) for boot in boots)


SMOKE = Profile(
    name="smoke",
    blocks=1,
    warmups=0,
    warmup_s=0.0,
    trials=1,
    window_s=1.0,
    trace_blocks=1,
    trace_s=1.0,
)
"""Checks that everything works; its figures mean nothing."""
PROFILE_NAMES = ("smoke", "quick", "standard", "thorough")


def profile(
    name: str,
    profiles: Mapping[str, Profile],
    *,
    blocks: int | None = None,
    extras: Sequence[str] = (),
    paced_pps: int | None = None,
) -> Profile:
    """The profile ``name`` of ``profiles``, with ``blocks`` instead of its own number if given.

    ``paced_pps`` is the bed's fixed rate of a paced load, which replaces shares.

    Raises:
        ConfigurationError: an unknown profile, or an impossible number of blocks.
    """
    found = profiles.get(name)
    if found is None:
        raise ConfigurationError(
            f"no profile is named {name!r}", hint=f"choose one of {', '.join(profiles)}"
        )
    found = replace(found, extras=tuple(extras), paced_shares=() if paced_pps else PACED_SHARES)
    if blocks is None or blocks == found.blocks:
        return found
    if found.looks:
        raise ConfigurationError(
            f"the profile {name} ends at declared looks, so it cannot have {blocks} blocks",
            hint="leave --blocks out, or use --profile standard",
        )
    if not 1 <= blocks <= MAX_BLOCKS:
        raise ConfigurationError(
            f"{blocks} blocks are not possible; expected 1 to {MAX_BLOCKS}",
            hint=f"one block boots each step once; a verdict needs {MIN_BLOCKS_FOR_VERDICT}",
        )
    return replace(found, blocks=blocks, layouts=min(blocks, MAX_LAYOUTS))


def make_plan(
    steps: Sequence[str],
    profile: Profile,
    *,
    seed: int,
    beds: Sequence[str] = (),
    baseline: str = BASELINE,
    ranged: bool = False,
) -> Plan:
    """Draw the order of boots from ``seed``; the same arguments give the same plan.

    Several ``beds`` get blocks in turn; the order is balanced on each bed. Another ``baseline``
    than step 0 is for commits; they are ``ranged`` if they are one range A..B.

    Raises:
        ConfigurationError: there are more beds than blocks.
    """
    if len(beds) < 2:
        order = balanced_blocks(steps, profile.blocks, seed=seed)
        return Plan(
            profile=profile,
            steps=tuple(steps),
            seed=seed,
            order=order,
            baseline=baseline,
            ranged=ranged,
        )
    if profile.blocks < len(beds):
        raise ConfigurationError(
            f"{len(beds)} beds cannot share {profile.blocks} blocks",
            hint=f"name fewer beds, or use --blocks {len(beds)} or more",
        )
    dealt = tuple(itertools.islice(itertools.cycle(beds), profile.blocks))
    rows = {
        bed: iter(balanced_blocks(steps, dealt.count(bed), seed=_seed_of(bed, seed)))
        for bed in beds
    }
    return Plan(
        profile=profile,
        steps=tuple(steps),
        seed=seed,
        order=tuple(next(rows[bed]) for bed in dealt),
        block_beds=dealt,
        baseline=baseline,
        ranged=ranged,
    )


def _seed_of(bed: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {bed}".encode()).digest()[:8])


def families(steps: Sequence[str], baseline: str = BASELINE) -> tuple[tuple[str, ...], ...]:
    """The comparisons with ``baseline``, in the order in which they are decided.

    The series is one family, and so are the stairs after it. The last step of a family is its
    primary comparison; an earlier step is decided only if all later ones are. Any other variant
    is a family of its own. Where factors are varied, each combination of levels has its own.
    """
    if cells.factors_of(steps):
        return tuple(
            tuple(step + levels for step in family)
            for levels, variants in cells.by_levels(steps).items()
            for family in families(variants, baseline)
        )
    stairs = [
        tuple(step for step in reversed(steps) if step in flight)
        for flight in (SERIES_STEPS[1:], STAIRS)
    ]
    others = [(step,) for step in steps if step not in (*SERIES_STEPS, *STAIRS, baseline)]
    return (*filter(None, stairs), *others)


def ordered_steps(
    steps: Sequence[str], baseline: str = BASELINE, *, ranged: bool = False
) -> tuple[str, ...]:
    """The steps over which a trend is tested: three or more of the series, or a range of commits.

    Empty if there is no such order, or factors are varied. The test is a claim about the series
    as a whole, and counts as a family.
    """
    if cells.factors_of(steps):
        return ()
    found = tuple(steps) if ranged else tuple(step for step in steps if step in SERIES_STEPS)
    return found if len(found) > 2 and baseline in found else ()


def claims(steps: Sequence[str], baseline: str = BASELINE, *, ranged: bool = False) -> int:
    """How many families share the 5 %: those of :func:`families`, the trend, and for each factor
    its interaction with the variants and its effect on the baseline."""
    compared = families(steps, baseline)
    of_factors = len(cells.factors_of(steps)) * (2 if compared else 1)
    return len(compared) + of_factors + bool(ordered_steps(steps, baseline, ranged=ranged))


def blocks_for_verdict(
    steps: Sequence[str], baseline: str = BASELINE, *, ranged: bool = False
) -> int:
    """The smallest number of blocks with which the first comparison of a family is decided.

    The smallest p-value of n blocks is 2 · (1/2)^n; each family has its share of 5 %.
    """
    blocks = MIN_BLOCKS_FOR_VERDICT
    while claims(steps, baseline, ranged=ranged) * 2 * 0.5**blocks >= 0.05:
        blocks += 1
    return blocks


def kernel_of(step: str) -> str:
    """The step of the series that runs under the name ``step``, at whatever levels."""
    return cells.variant_of(step).removesuffix("again")


def step_number(step: str) -> int | None:
    """The number of the series' patches in ``step``; ``None``: it is not a step of the series.

    2m counts as 1: it has the lists of step 2 only while interrupt moderation is on.
    """
    parts = parts_of(kernel_of(step))
    if not set(parts) <= set(ALL_STEPS):
        return None
    return 1 if "2m" in parts else int(re.sub(r"\D", "", parts[0]))


def parts_of(step: str) -> tuple[str, ...]:
    """A numbered step and the optional patches over it, as ``8+10+11`` names them."""
    return tuple(step.split("+"))


_RANGE = re.compile(r"([0-9]{1,18})\s*-\s*([0-9]{1,18})")
_NUMBER = re.compile(r"[0-9]{1,18}")


def parse_step(spec: str) -> str:
    """The single step that a user named.

    Raises:
        ConfigurationError: it does not exist, or several are named.
    """
    first, *more = parse_steps(spec)
    if more:
        raise ConfigurationError(f"{spec!a} names several steps; expected one", hint="such as 8")
    return first


def parse_steps(spec: str, available: Sequence[str] = (*ALL_STEPS, SHIPPED)) -> tuple[str, ...]:
    """The steps that a user named, in the order of ``available``, each once.

    ``0,2,8`` is a list, ``0-8`` a range of numbered steps; both can be mixed. A variant such
    as ``2m`` cannot be part of a range. ``8+10+11`` is step 8 with these optional patches alone.

    Raises:
        ConfigurationError: an empty item, a name not in ``available``, a sum that does not
            begin with a step of the series, or a range that runs backwards.
    """
    known = f"known steps: {_spanned(available)}; write them as 0,2,8 or 0-8 or 8+11"
    wanted: set[str] = set()
    for item in (part.strip() for part in spec.split(",")):
        if not item:
            raise ConfigurationError(f"steps {spec!r:.80} have an empty item", hint=known)
        match = _RANGE.fullmatch(item)
        if match is None:
            names = [_sorted_sum(item, available)]
        else:
            first, last = int(match[1]), int(match[2])
            if first > last:
                raise ConfigurationError(
                    f"the range {item} in steps {spec!r:.80} runs backwards",
                    hint=f"write {last}-{first}",
                )
            if last - first > 10_000:  # a typing error
                raise ConfigurationError(f"the range {item} is too large", hint=known)
            names = [str(number) for number in range(first, last + 1)]
        for name in names:
            for part in parts_of(name):
                if part not in available:
                    raise ConfigurationError(f"step {part!r:.80} does not exist", hint=known)
            _require_sum(name)
        wanted.update(names)
    return tuple(sorted(wanted, key=lambda name: _places(name, available)))


def _sorted_sum(item: str, available: Sequence[str]) -> str:
    """``item`` with what is added in the order of ``available``, each once."""
    parts = (part.strip() for part in item.split("+"))
    first, *more = (str(int(part)) if _NUMBER.fullmatch(part) else part for part in parts)
    return "+".join([first, *sorted(set(more), key=lambda name: _places(name, available))])


def _require_sum(name: str) -> None:
    first, *added = parts_of(name)
    if added and (first not in SERIES_STEPS or not set(added).isdisjoint(SERIES_STEPS)):
        raise ConfigurationError(
            f"step {name!r:.80} is not a step of the series and optional patches",
            hint="write the step first, then what is added to it: 8+11",
        )


def _places(name: str, available: Sequence[str]) -> list[int]:
    """Sorts a sum behind its first step and before the next."""
    return [available.index(part) if part in available else 0 for part in parts_of(name)]


def _spanned(names: Sequence[str]) -> str:
    """``names`` as a user may write them, with consecutive numbers as ranges."""
    runs: list[list[str]] = []
    for name in names:
        last = runs[-1][-1] if runs else ""
        if name.isdigit() and last.isdigit() and int(name) == int(last) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ",".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def balanced_blocks(
    variants: Sequence[str], blocks: int, *, seed: int
) -> tuple[tuple[str, ...], ...]:
    """Randomised complete blocks with balanced positions.

    Complete squares are Latin: each variant has each position equally often. An incomplete
    last square leaves counts that differ by at most one. The columns follow Williams'
    sequence, and every second square is a mirror image, so the predecessors of a boot are
    balanced as well: each ordered pair of neighbours occurs equally often, over one square
    for an even number of variants, over two for an odd number.
    """
    size = len(variants)
    # Only random() is guaranteed to give the same sequence in every version of Python.
    draw = random.Random(seed).random  # noqa: S311 (an order, no secret)
    columns = [(-(-k // 2) if k % 2 else -k // 2) % size for k in range(size)]
    order: list[tuple[str, ...]] = []
    names: list[str] = []
    while len(order) < blocks:
        # A mirrored square keeps the names of the square before it.
        mirrored = bool(names) and (len(order) // size) % 2 == 1
        if not mirrored:
            names = sorted(variants, key=lambda _: draw())
        for shift in sorted(range(size), key=lambda _: draw()):
            row = [names[(column + shift) % size] for column in columns]
            order.append(tuple(reversed(row)) if mirrored else tuple(row))
    return tuple(order[:blocks])


def boots_of(order: Sequence[Sequence[str]], shard: Shard | None = None) -> Iterator[PlannedBoot]:
    """The boots of a stored order, or those of ``shard``."""
    for block, row in enumerate(order, start=1):
        if shard and not shard.has(block):
            continue
        for position, step in enumerate(row, start=1):
            yield PlannedBoot(block, position, step)

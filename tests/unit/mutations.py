# SPDX-License-Identifier: MIT
"""Mistakes of one line each, and the test without a boot that catches it.

``old`` stands once in harness/, wherever that is: a line that moves to another file needs no
change here, and one that is rewritten is looked for by test_mutations.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """``new`` in place of ``old``, and the tests of tests/unit of which one has to fail."""

    what: str
    old: str
    new: str
    caught_by: str


_HOLDS, _CALLS = "test_campaign_holds.py::test_", "test_campaign_calls.py::test_"
_FIGURES = f"{_CALLS}the_figures_are_those_of_the_simulated_kernels"
_ORDER = f"{_HOLDS}settings_are_made_before_the_load_and_put_back_after_it"
_PLACES = f"{_HOLDS}interrupts_and_processes_are_put_where_the_plan_says"
_PACED = f"{_HOLDS}paced_loads_are_shares_in_bytes_a_second"
_WINDOWS = f"{_HOLDS}counters_are_read_at_both_ends_of_each_window"
_VOID = f"{_HOLDS}a_trial_in_which_this_happens_does_not_count"
_NDR = f"{_HOLDS}the_highest_rate_is_confirmed_and_loses_next_to_nothing"
_JOURNAL = f"{_HOLDS}what_is_done_to_a_host_is_on_disk_before"
_LOST = f"{_HOLDS}a_lost_host_is_tried_three_times_and_its_boot_has_no_end"
_RESUMED = f"{_HOLDS}a_resumption_asks_of_what_was_left_and_keeps_what_is_done"
_LEFT = f"{_HOLDS}whatever_ends_a_boot_the_hosts_are_left_as_they_were"
_VIRTUAL = f"{_CALLS}a_virtual_bed_is_asked_this"
_MACHINE = "test_machine.py::test_"
_LOADS = "test_loads.py::test_"
_BROKEN = "test_settings_broken.py::test_"
_SHARDS, _MBOX = "test_shards.py::test_", "test_mbox.py::test_"

MUTATIONS = (
    # Varied factors
    Mutation(
        "each boot is set up as hosts.yaml says, not as its cell",
        "prepare(bed, setup.load, image, self)",
        "prepare(setup.bed, setup.load, image, self)",
        "test_vary.py::test_each_boot_is_set_up_as_its_cell_says",
    ),
    Mutation(
        "the wire has the burst of hosts.yaml at each level",
        "self.bed.set_wire(wire)",
        "pass",
        "test_vary.py::test_the_wire_of_each_boot_has_the_burst_of_its_cell",
    ),
    Mutation(
        "a cell is compared with the baseline at the first level",
        "return cells.beside(step, self.baseline)",
        "return next(filter(self.is_baseline, self.steps))",
        "test_levels.py::test_each_level_has_its_own_baseline",
    ),
    Mutation(
        "an interaction is not held against the gain at the first level",
        "tuple(a / b for a, b in zip(one.ratios, other.ratios, strict=True))",
        "one.ratios",
        "test_levels.py::test_an_interaction_is_the_difference_of_the_differences_of_each_block",
    ),
    Mutation(
        "words on interactions are not among those that share the 5 %",
        "families.append([*range(len(pairs), len(pairs) + len(chain))])",
        "pass",
        "test_levels.py::test_few_blocks_decide_nothing_of_many_comparisons",
    ),
    # Calls and their arguments
    Mutation(
        "netserver is stopped where its streams were to end",
        "bed.dut.netserver_end()",
        "bed.dut.netserver_stop()",
        f"{_CALLS}machines_are_asked_this",
    ),
    Mutation(
        "streams are stopped, not ended: their counts are lost",
        "bed.generator.netperf_end()",
        "bed.generator.netperf_stop()",
        f"{_HOLDS}the_load_has_ended_before_the_bed_does",
    ),
    Mutation(
        "pacing in kB/s",
        "rate = round((pps or 0) * frame_bytes)",
        "rate = round((pps or 0) * frame_bytes / 1000)",
        _PACED,
    ),
    Mutation(
        "pacing in bit/s",
        "rate = round((pps or 0) * frame_bytes)",
        "rate = round((pps or 0) * frame_bytes * 8)",
        _PACED,
    ),
    Mutation(
        "packets over IPv6 are not counted",
        'return self.snmp(table, *names) + self.snmp(f"{table}6", *names)',
        "return self.snmp(table, *names)",
        f"{_LOADS}a_load_that_loses_nothing_counts",
    ),
    Mutation(
        "packets for the host itself are no end of those that are forwarded",
        "out = delta.forwarded + delta.delivered_here",
        "out = delta.forwarded",
        f"{_LOADS}what_is_counted_elsewhere_is_no_loss",
    ),
    Mutation(
        "any loss of payload is a duplicate",
        "more=duplicates * _LONGEST_PAYLOAD",
        "more=10**12",
        f"{_LOADS}a_packet_that_is_lost_on_the_way_voids_the_trial",
    ),
    Mutation(
        "frames are paced without their headers",
        "loads.named(load.kind).headers_bytes + load.message_bytes",
        "load.message_bytes",
        _PACED,
    ),
    Mutation(
        "the socket buffer of a paced stream is the host's",
        "send_buffer_bytes=_PACED_SEND_BUFFER_BYTES if paced_pps else 0",
        "send_buffer_bytes=0",
        f"{_CALLS}machines_are_asked_this",
    ),
    Mutation(
        "a window is twice as long",
        "duration_s=trial.duration_s,\n            netserver=True,",
        "duration_s=2 * trial.duration_s,\n            netserver=True,",
        _WINDOWS,
    ),
    Mutation(
        "who waits for a window forgets that boots take turns",
        "within_s = (trial.duration_s + _ANSWER_S) * len(boots)",
        "within_s = trial.duration_s",
        _VIRTUAL,
    ),
    Mutation(
        "netserver is not followed within a window",
        "netserver=True,",
        "netserver=False,",
        _PLACES,
    ),
    Mutation(
        "another CPU's counters are read",
        "pmu_cpu=irq_cpu",
        "pmu_cpu=0",
        _FIGURES,
    ),
    Mutation(
        "the emulator is not asked to count",
        "window(block.bed.placement.irq_cpu, emulated=True)",
        "window(block.bed.placement.irq_cpu)",
        f"{_CALLS}what_the_emulator_counted_is_per_packet_and_by_function",
    ),
    Mutation(
        "interrupts go to netserver's CPU",
        '"irq_cpu": bed_config.placement.irq_cpu',
        '"irq_cpu": bed_config.netserver_cpu',
        _PLACES,
    ),
    Mutation(
        "netserver runs anywhere",
        "cpu=bed_config.netserver_cpu",
        "cpu=None",
        _PLACES,
    ),
    Mutation("netperf runs anywhere", "cpus=bed.netperf_cpus", "cpus=[]", _PLACES),
    # The order of things
    Mutation(
        "settings are not restored",
        "role: agent.settings_restore() for role, agent in agents(bed).items()",
        "role: {'restored': ['address']} for role, agent in agents(bed).items()",
        _ORDER,
    ),
    Mutation(
        "the generator's settings are not made",
        "for role in wanted}",
        "for role in wanted if role == 'dut'}",
        _ORDER,
    ),
    Mutation(
        "settings of a latency trial stay",
        "        set_dut(coalesce=moderation, busy_read_us=busy_read_us)",
        "        pass",
        f"{_HOLDS}what_a_latency_trial_sets_is_set_back_also_when_it_fails",
    ),
    Mutation(
        "a load goes on after its kernel died",
        "end_load(self._bed)",
        "pass",
        _LEFT,
    ),
    Mutation("netserver runs on", "bed.dut.netserver_stop()", "pass", _ORDER),
    Mutation("pacing is not lifted", "        if self._paced_pps:", "        if False:", _PACED),
    Mutation("probes stay attached", "boot.bed.probes.trace_detach()", "pass", _FIGURES),
    Mutation(
        "trials are timed after the probes are attached",
        "boot.bed.probes.trace_attach(interface=boot.bed.dut_interface)",
        "pass",
        f"{_HOLDS}nothing_is_timed_under_the_probes",
    ),
    Mutation(
        "a load is not waited for",
        "if sending == streams and rates[-1]",
        "if rates[-1]",
        f"{_VOID}[no-load]",
    ),
    Mutation(
        "the NIC's statistics are read too soon",
        "load.end_receiver())\n    time.sleep(_SETTLE_S)",
        "load.end_receiver())",
        _WINDOWS,
    ),
    Mutation(
        "counters are read once only",
        'return {"before": self._before, "after": self._counters()}',
        'return {"before": self._counters(), "after": self._counters()}',
        _WINDOWS,
    ),
    Mutation(
        "the other boots are not frozen", "        other.bed.freeze()", "        pass", _VIRTUAL
    ),
    Mutation("turns are unfair", "for boot in reversed(turn) if", "for boot in turn if", _VIRTUAL),
    Mutation(
        "steps are booted in another order",
        "yield from ((boot,) for boot in boots)",
        "yield from ((boot,) for boot in reversed(boots))",
        _JOURNAL,
    ),
    Mutation(
        "warm-ups are left out",
        "for index in range(profile.warmups)",
        "for index in range(0)",
        _WINDOWS,
    ),
    # The kernel
    Mutation(
        "whatever kernel runs is measured",
        "if boot.release != image.release:",
        "if False:",
        f"{_HOLDS}another_kernel_than_asked_for_is_not_measured",
    ),
    Mutation(
        "a kernel may complain",
        "if death := kernel_death(bed.console()):",
        "if death := None:",
        f"{_HOLDS}a_kernel_that_complained_has_failed",
    ),
    Mutation(
        "whatever stands in the way of packets is measured",
        "    require_free_way(bed, boot.settings)\n",
        "    pass\n",
        f"{_HOLDS}what_stands_between_the_nic_and_the_stack_is_refused",
    ),
    # The journal, lost hosts, resumption
    Mutation(
        "a boot is noted after it was done",
        "        self._note(BEGIN)\n        self._bed = self._up.enter_context("
        "setup.boots.boot(image, self.directory, self._note))\n",
        "        self._bed = self._up.enter_context("
        "setup.boots.boot(image, self.directory, self._note))\n        self._note(BEGIN)\n",
        _JOURNAL,
    ),
    Mutation(
        "a lost boot has its end",
        "if not isinstance(error, HostLostError):  #",
        "if True:  #",
        _LOST,
    ),
    Mutation("a lost host is not tried again", "_ATTEMPTS = 3", "_ATTEMPTS = 1", _LOST),
    Mutation(
        "what is finished is booted again",
        "if _finished(samples.boot_directory(directory, planned)):",
        "if False:",
        _RESUMED,
    ),
    Mutation(
        "nobody looks at what a killed harness left",
        "(why := setup.boots.crashed(notes))",
        "(why := None)",
        _RESUMED,
    ),
    Mutation(
        "a step whose kernel died is booted again",
        "if planned.step not in failed",
        "if True",
        "test_campaign.py::test_a_step_that_took_its_host_along_is_booted_again_only_when_asked",
    ),
    # What a paced load is a share of, and the rate without loss
    Mutation(
        "the fastest boot tells the paced loads",
        "return min(filter(None, boots), key=lambda one: one.pps, default=None)",
        "return max(filter(None, boots), key=lambda one: one.pps, default=None)",
        "test_pacing.py::test_all_boots_of_a_block_get_the_same_loads",
    ),
    Mutation(
        "each boot has paced loads of its own",
        "taken=functools.cache(lambda: _taken(setup, boots))",
        "taken=lambda: pacing.taken(boots[0].trials, setup.bed.placement.irq_cpu)",
        _PACED,
    ),
    Mutation(
        "a rate may lose packets",
        "lost=_lost(row), unsent",
        "lost=0, unsent",
        _NDR,
    ),
    Mutation(
        "a rate that is not offered passes",
        "unsent = 0 if _offered(row) else round(pps * lasted_s) - sent",
        "unsent = 0",
        f"{_HOLDS}a_rate_that_the_generator_does_not_send_does_not_pass",
    ),
    Mutation(
        "a rate that is not offered is taken for the dut's",
        '        if name == "ndr_pps":\n            found |=',
        '        if name == "ndr_pps":\n            why = None\n            found |=',
        f"{_VOID}[rate-not-found]",
    ),
    Mutation(
        "the rate found is not confirmed",
        "TRIALS_OF_A_BOUND = 4",
        "TRIALS_OF_A_BOUND = 1",
        _NDR,
    ),
    Mutation("the search is coarse", "RESOLUTION = 0.03", "RESOLUTION = 0.3", _NDR),
    Mutation(
        "two spurious losses bound the search",
        "TRIALS_OF_A_BOUND = 4",
        "TRIALS_OF_A_BOUND = 3",
        "test_search.py::test_one_spurious_loss_in_twenty_does_not_scatter_the_rates",
    ),
    Mutation(
        "all goals are the strictest",
        "loss_ratio=loss,",
        "loss_ratio=losses[0],",
        "test_search.py::test_the_search_comes_as_near_to_each_limit_as_its_resolution",
    ),
    Mutation(
        "what was not sent is no loss",
        "intended_count=done.sent + done.unsent",
        "intended_count=done.sent",
        "test_search.py::test_what_the_generator_does_not_send_is_no_pass",
    ),
    Mutation(
        "cells of latency are swapped",
        "busy_read_us=_BUSY_READ_US if cell.busy_poll else 0",
        "busy_read_us=0 if cell.busy_poll else _BUSY_READ_US",
        _FIGURES,
    ),
    # Void rules and metrics
    Mutation(
        "interrupts and processes may move",
        "void += _moved(placement, conditions)",
        "void += []",
        f"{_VOID}[process-moved]",
    ),
    Mutation(
        "packets may spread over queues",
        "void += _spread(window, conditions)",
        "void += []",
        f"{_VOID}[queues-spread]",
    ),
    Mutation(
        "a load need not settle", "void += _ramp_rule(sample)", "pass", f"{_VOID}[ramp-unsteady]"
    ),
    Mutation(
        "streams may fail",
        "void += _stream_rules(sample, window)",
        "pass",
        f"{_VOID}[stream-failed]",
    ),
    Mutation(
        "a paced load may miss its rate",
        "if asked and pps is not None and abs(pps - asked) > allowed * asked:",
        "if False:",
        f"{_VOID}[rate-missed]",
    ),
    Mutation(
        "an unsaturated receiver has a rate",
        "if judged.saturated is False:",
        "if False:",
        f"{_VOID}[unsaturated]",
    ),
    Mutation(
        "trials that are void when they end count",
        "void = [*sample.void, *own]",
        "void = [*own]",
        f"{_VOID}[no-load]",
    ),
    Mutation(
        "traced trials are timed ones",
        "if told.saturation is not None:",
        "if told.traced_pps:\n            self.timed[9] = told\n"
        "        if told.saturation is not None:",
        _FIGURES,
    ),
    Mutation(
        "warm-ups are timed trials",
        'PlannedTrial("warmup", index',
        'PlannedTrial("timed", index',
        _WINDOWS,
    ),
    Mutation(
        "all CPUs are a packet's cost",
        "delta.cost_ns(conditions.irq_cpu)",
        "delta.cost_ns(None)",
        _FIGURES,
    ),
    # Settings on a host
    Mutation(
        "changes are not journalled",
        "self._journal[interface].add(setting.name, now)",
        "pass",
        f"{_BROKEN}the_host_is_as_it_was",
    ),
    Mutation(
        "settings are put back in the order in which they were made",
        "self._changes.append((interface, setting, now))",
        "self._changes.insert(0, (interface, setting, now))",
        f"{_BROKEN}the_host_is_as_it_was",
    ),
    Mutation(
        "settings need not take",
        "if not setting.holds(after, wanted):",
        "if False:",
        f"{_BROKEN}the_host_is_as_it_was",
    ),
    Mutation(
        "a setting that fails leaves the others changed",
        "            self._taken_back(error)\n",
        "            pass\n",
        f"{_BROKEN}the_host_is_as_it_was",
    ),
    Mutation(
        "interrupts stay where they are",
        'return dict.fromkeys(now, str(asked["irq_cpu"]))',
        "return dict(now)",
        f"{_BROKEN}every_setting_is_made_there_and_put_back",
    ),
    # Machines
    Mutation(
        "a boot entry may stay armed",
        'if stays or not state["default_untouched"]:',
        "if False:",
        f"{_MACHINE}a_boot_that_would_repeat_itself_stops_everything",
    ),
    Mutation(
        "another kernel may come up",
        'if agent.ready["release"] != release:',
        "if False:",
        f"{_MACHINE}another_kernel_is_not_measured",
    ),
    Mutation(
        "a machine is told to boot before that is noted",
        '            note("leaving", boot_id=before, release=image.release)\n'
        "            self.boot_id, self.release = None, image.release\n"
        "            self._leave(agent, method, token)\n",
        "            self.boot_id, self.release = None, image.release\n"
        "            self._leave(agent, method, token)\n"
        '            note("leaving", boot_id=before, release=image.release)\n',
        f"{_MACHINE}a_boot_is_noted_before_the_machine_is_told",
    ),
    Mutation(
        "the agent on the dut outlives its boot",
        "up.callback(_end, dut)",
        "pass",
        f"{_MACHINE}the_agent_of_the_dut_ends_with_its_boot",
    ),
    Mutation(
        "the agent on the generator outlives the campaign",
        "        if self._sending is not None:\n            _end(self._sending)\n"
        "        self._still_mine()\n",
        "        self._still_mine()\n",
        f"{_MACHINE}the_agent_of_the_dut_ends_with_its_boot",
    ),
    Mutation(
        "a machine stays in a kernel under test",
        "if self._dut.runs_its_own(agent):",
        "if True:",
        f"{_MACHINE}the_agent_of_the_dut_ends_with_its_boot",
    ),
    # Shards, mailed series, and waiting
    Mutation(
        "a shard measures the blocks of its neighbour",
        "return (block - self.number) % self.of == 0",
        "return (block - self.number) % self.of == 1 % self.of",
        f"{_SHARDS}the_plan_of_a_shard",
    ),
    Mutation(
        "a shard is judged as if it were the campaign",
        "*_links_differ(boots), *_share_alone(campaign))",
        "*_links_differ(boots))",
        f"{_SHARDS}a_shard_alone_has_no_verdict",
    ),
    Mutation(
        "shards of unlike kernels are joined",
        '_MAY_DIFFER = ("source", ',
        '_MAY_DIFFER = ("release", "source", ',
        f"{_SHARDS}what_is_not_the_same_campaign",
    ),
    Mutation(
        "an unfinished shard is joined",
        "    if result.problems:\n        raise",
        "    if False:\n        raise",
        f"{_SHARDS}shards_that_are_missing_unfinished_or_there_twice",
    ),
    Mutation(
        "two machines are taken for one",
        '"block_beds": beds if len(names) > 1 else [],',
        '"block_beds": [],',
        f"{_SHARDS}machines_that_differ_are_beds",
    ),
    Mutation(
        "patches in the order of the mails",
        "return [numbered[number] for number in sorted(numbered)]",
        "return list(numbered.values())",
        f"{_MBOX}a_series_is_its_patches_in_order",
    ),
    Mutation(
        "the oldest version of a series counts",
        "version = max(mail.version for mail in patches)",
        "version = min(mail.version for mail in patches)",
        f"{_MBOX}a_newer_version_counts_and_copies_do_not",
    ),
    Mutation(
        "a reply is taken for a patch",
        "return bool(not self.reply and tagged and self.diff)",
        "return bool(tagged and self.diff)",
        f"{_MBOX}order_and_encoding_do_not_matter",
    ),
    Mutation(
        "the base that a series names is not used",
        "    if stated and not base:\n",
        "    if False:\n",
        f"{_MBOX}the_base_is_named_by_the_series_else_by_the_user_else_head",
    ),
    Mutation(
        "kernels are built beside the measurement that is waited for",
        "    if waiting.alone:  # before",
        "    if False:  # before",
        "test_waiting.py::test_a_run_waits_before_it_builds",
    ),
)

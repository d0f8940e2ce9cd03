# SPDX-License-Identifier: MIT
"""The NIC of a dut: what it is, what can be set on it under load, and that it is put back."""

from __future__ import annotations

import time

import pytest

from harness import config
from harness.campaign import prepare
from harness.trials.load import start_load
from tests.guest.conftest import Beds

pytestmark = pytest.mark.guest

_SETTLED_S = 3.0


def test_rings_offloads_and_queues_of_the_model(beds: Beds) -> None:
    virtual = config.bed(config.load(config.locate(None)), "virtual")
    asked = virtual.model_copy(
        update={
            "rx_ring": 512,
            "steering": "rss",
            "offloads": {"gro": False, "rx_checksum": False, "lro": True},
            "coalesce": {"adaptive_rx": False, "rx_usecs": 30},
        }
    )
    with beds.up() as bed:
        nic = bed.dut.inventory(interface=bed.dut_interface)["nic"]
        assert (nic["family"], nic["function"], nic["warnings"]) == ("ef10", "PF", [])
        assert nic["firmware"]["variant"] == "low-latency"
        assert set(nic["queue_irqs"]) == {"0", "1"}
        assert nic["port"] == 0

        untouched = bed.dut.settings_read(interface=bed.dut_interface)
        assert untouched["rings"]["rx"] != 512
        assert len(set(untouched["rx_queues"]["indirection"])) == 2
        done = prepare.apply_settings(asked, bed)["dut"]
        after = done["after"]
        assert after["rings"] == untouched["rings"] | {"rx": 512}
        assert after["gro"] is False
        assert after["offloads"]["rx-checksum"]["on"] is False
        assert set(after["rx_queues"]["indirection"]) == {0}
        assert after["coalesce"]["adaptive_rx"] is False
        assert after["through"]["rings"] in ("netlink", "ioctl")
        skipped = {row["setting"]: row["why"] for row in done["skipped"]}
        assert set(skipped) == {"governor", "offloads.lro"}

        start_load(asked, config.Load(streams=2), bed)
        time.sleep(_SETTLED_S)
        window = bed.dut.window(interface=bed.dut_interface, duration_s=2.0, pmu_cpu=0)
        bed.generator.netperf_stop()
        bed.dut.netserver_stop()
        taken = {
            name: window["end"]["nic"][name] - window["start"]["nic"][name]
            for name in ("rx-0.rx_packets", "rx-1.rx_packets")
        }
        assert taken["rx-0.rx_packets"] > 1000
        assert taken["rx-1.rx_packets"] == 0
        # What the driver names is here by those names (ef10.c, ethtool_common.c).
        assert {"port_rx_packets", "port_rx_nodesc_drops", "port_rx_bad", "rx_nodesc_trunc",
                "rx_noskb_drops", "rx_frm_trunc"} <= set(window["end"]["nic"])  # fmt: skip
        # TCG has no counters, and a guest's image no perf.
        assert window["pmu"]["counts"] == {}
        [why] = set(window["pmu"]["absent"].values())
        assert "no PMU" in why or "perf is not" in why

        restored = bed.dut.settings_restore()
        assert restored["failed"] == []
        assert {"rings", "offloads", "rx_queues", "coalesce"} <= set(restored["restored"])
        assert bed.dut.settings_read(interface=bed.dut_interface) == untouched


def test_a_rule_that_the_nic_has_no_filter_for_is_skipped(beds: Beds) -> None:
    virtual = config.bed(config.load(config.locate(None)), "virtual")
    asked = virtual.model_copy(update={"steering": "ntuple"})
    with beds.up() as bed:
        untouched = bed.dut.settings_read(interface=bed.dut_interface)
        assert untouched["ntuple"] in ([], None)
        done = prepare.apply_settings(asked, bed)["dut"]
        [why] = [row["why"] for row in done["skipped"] if row["setting"] == "ntuple"]
        assert why
        assert done["after"]["rx_queues"] == untouched["rx_queues"]
        assert bed.dut.settings_restore()["failed"] == []
        assert bed.dut.settings_read(interface=bed.dut_interface) == untouched

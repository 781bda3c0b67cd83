"""Peak memory against allocations of known size."""

import sys
from dataclasses import dataclass

import pytest

from kdrun.bench.contest import Contestant, hold
from kdrun.bench.memory import STATUS, PeakMeter, peak_in_own_process

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="needs /proc: the high-water mark can be set back")
MIB = 2**20


@dataclass(frozen=True)
class Allocations:
    """Inputs of 50 MiB; contestants that hold 30 MiB, 90 MiB one after the other, or fail."""

    label: str = "allocations"
    device: str = "cpu"

    @property
    def sizes(self) -> dict[str, float]:
        return {}

    def build(self) -> bytearray:
        return bytearray(50 * MIB)

    def contestants(self) -> list[Contestant]:
        return [
            Contestant("30 MiB", hold_30, "ours"),
            Contestant("3 x 30 MiB", thrice_30, "ours"),
            Contestant("absent", hold_30, "peer", package="no_such_package"),
            Contestant("broken", fail, "peer"),
            Contestant("of a GPU", fail, "peer", device="cuda"),
        ]


def written(size: int) -> bytearray:
    block = bytearray(size)
    block[::4096] = b"\1" * len(block[::4096])
    return block


def hold_30(inputs: bytearray):
    return lambda: written(30 * MIB)


def thrice_30(inputs: bytearray):
    def work() -> None:
        for _ in range(3):
            written(30 * MIB)  # freed before the next
        assert len([written(30 * MIB) for _ in range(3)]) == 3

    return work


def fail(inputs: bytearray):
    raise ValueError("no\nluck")


def test_a_meter_sees_what_was_held_at_once_and_is_gone() -> None:
    meter = PeakMeter("cpu")
    meter.start()
    block = written(40 * MIB)
    del block
    assert meter.peak_bytes() / MIB == pytest.approx(40, abs=4)


def test_a_peak_is_above_the_inputs_in_a_process_of_its_own() -> None:
    assert peak_in_own_process(Allocations(), "30 MiB", threads=1) / MIB == pytest.approx(30, abs=4)
    assert peak_in_own_process(Allocations(), "3 x 30 MiB", threads=1) / MIB == pytest.approx(90, abs=4)
    assert "no_such_package" not in sys.modules


def test_absent_and_failing_peers_are_told_and_the_others_measured() -> None:
    found = {entry.name: entry for entry in hold(Allocations(), repetitions=2, memory=False, threads=1).entries}
    assert list(found) == ["30 MiB", "3 x 30 MiB", "absent", "broken"]
    assert found["absent"].note == "no_such_package is not installed"
    assert found["broken"].note == "failed: ValueError: no luck"
    assert found["absent"].timing is found["broken"].timing is None
    assert len(found["30 MiB"].timing.seconds) == 2

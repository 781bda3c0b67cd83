"""How much the chunked objective holds at once, counted tensor by tensor."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdrun.losses import LOSSES, Loss, chunked_linear_loss, make_loss, row_blocks
from kdrun.losses.chunked import WORK_TENSORS
from kdrun.native import fast_float32_products


class LiveTensors(TorchDispatchMode):
    """Records the size of the largest tensor made, and the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak_bytes = self._bytes = 0
        self._references: list[weakref.ref[Tensor]] = []  # kept, or their callbacks would not run
        self._holders: dict[int, int] = {}  # tensors alive on each storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()

        def forget(_: Any) -> None:
            self._holders[address] -= 1
            self._bytes -= size if self._holders[address] == 0 else 0

        self._bytes += size if self._holders.get(address, 0) == 0 else 0
        self._holders[address] = self._holders.get(address, 0) + 1
        self._references.append(weakref.ref(tensor, forget))
        self.peak_bytes = max(self.peak_bytes, self._bytes)


@pytest.fixture(autouse=True, scope="module")
def looked_at_the_processor() -> None:
    """The first call in a process compares products of the two libraries: not what is counted here."""
    with fast_float32_products():
        pass


def _measured(loss: Loss, num_tokens: int, vocabulary: int, chunk_tokens: int) -> LiveTensors:
    hidden, weight = torch.randn(num_tokens, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    target = torch.zeros(num_tokens, dtype=torch.long)
    with LiveTensors() as live:
        chunked_linear_loss(
            loss, hidden, weight, hidden.detach(), weight.detach(), target, chunk_tokens, kd_ratio=0.5, temperature=2.0
        ).backward()
    return live


@pytest.mark.parametrize("name", list(LOSSES))
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(name):
    assert _measured(make_loss(name), 32, 2000, chunk_tokens=8).largest == 8 * 2000


def test_without_gradient_no_gradient_is_made():
    """Only a view of the weight, the work tensors of a chunk and of a block: no room for a gradient of the weight."""
    hidden, weight = torch.randn(16, 640, requires_grad=True), torch.randn(2000, 640, requires_grad=True)
    with torch.no_grad(), LiveTensors() as live:
        chunked_linear_loss(make_loss("akl"), hidden, weight, hidden, weight, chunk_tokens=8)
    assert live.peak_bytes <= 4 * 640 * 2000 + (WORK_TENSORS + 12) * 4 * 8 * 2000


def _least_peak_bytes(num_tokens: int, vocabulary: int, chunk_tokens: int) -> int:
    """Of three measurements, each after a collection: a tensor that waits for the collector only adds to a peak."""
    peaks = []
    for _ in range(3):
        gc.collect()
        peaks.append(_measured(make_loss("akl"), num_tokens, vocabulary, chunk_tokens).peak_bytes)
    return min(peaks)


def test_peak_memory_does_not_grow_with_the_number_of_tokens():
    """From 16 to 256 tokens: hidden states, their gradients and targets grow, one [256, 2000] float32 would be 2 MB."""
    few, many = (_least_peak_bytes(n, 2000, chunk_tokens=8) for n in (16, 256))
    assert many - few < 0.01 * 4 * 256 * 2000


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_chunk_holds_the_work_tensors_of_the_budget_and_a_block_of_rows_not_more_than_twelve(name, monkeypatch):
    """Beside them, less than three weights: its gradient, a part of it or its product in backward, hidden states."""
    block_bytes, work_bytes, weight_bytes = 4 * 4 * 2000, WORK_TENSORS * 4 * 32 * 2000, 4 * 4 * 2000
    monkeypatch.setitem(row_blocks.BLOCK_BYTES, "cpu", block_bytes)
    _measured(make_loss(name), 4, 2000, chunk_tokens=4)  # what a first call keeps is not counted
    live = _measured(make_loss(name), 96, 2000, chunk_tokens=32)
    assert live.peak_bytes <= work_bytes + 12 * block_bytes + 3 * weight_bytes


LEAK = """
import random, torch
from pathlib import Path
from kdrun.losses import chunked_linear_loss, make_loss
torch.set_num_threads(1)
def resident_mib():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
weight, theirs = torch.randn(4000, 32, requires_grad=True), torch.randn(4000, 48)
random.seed(0)
for step in range(121):
    size = random.randint(200, 900)
    hidden = torch.randn(size, 32, requires_grad=True)
    weight.grad = None
    chunked_linear_loss(make_loss("fkl"), hidden, weight, torch.randn(size, 48), theirs, chunk_tokens=208).backward()
    if step == 20:
        before = resident_mib()
print(resident_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_every_new_number_of_tokens():
    """oneDNN kept its code and buffers for every shape: 200 MiB after these steps."""
    done = subprocess.run([sys.executable, "-c", LEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 30

"""What machines do at their best: the makers' figures for GPUs, a measured product for the one at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """flops: of dense matrix products a second, by precision; memory_bytes: for one run; watts: under load, None when
    not known; own_bytes: what a process takes before its first tensor. device_type: as torch names it."""

    name: str
    device_type: str
    flops: dict[str, float]
    memory_bytes: int
    watts: float | None
    own_bytes: int


# NVIDIA's data sheets: dense (not sparse) bf16 tensor-core and plain fp32 TFLOP/s, GB, W of the board.
DATA_SHEETS = {
    "a10": (125, 31.2, 24, 150),
    "a100-40gb": (312, 19.5, 40, 400),  # SXM; the PCIe card has the same rates at 250 W
    "a100-80gb": (312, 19.5, 80, 400),
    "h100": (989, 67, 80, 700),  # SXM
    "h200": (989, 67, 141, 700),
    "l4": (121, 30.3, 24, 72),
    "l40s": (362, 91.6, 48, 350),
    "rtx3090": (71, 35.6, 24, 350),
    "rtx4090": (165, 82.6, 24, 450),
}
# CUDA's context, cuBLAS's workspaces, what the allocator cannot use: assumed, not measured.
GPU_OWN_BYTES = 3 * GIB // 2
WATTS_A_CORE = 10.0  # of a CPU with its memory: assumed


def named_gpu(name: str) -> Machine:
    """A GPU of DATA_SHEETS."""
    bf16, fp32, gigabytes, watts = DATA_SHEETS[name]
    return Machine(name, "cuda", {"bf16": bf16 * 1e12, "fp32": fp32 * 1e12}, gigabytes * GIB, watts, GPU_OWN_BYTES)


def this_machine(device: str, precision: str, *, seconds: float = 1.0) -> Machine:
    """The device at hand, its rate measured for so long; on a CPU the memory that is free now, and that this process
    holds, which has imported and read what a training does."""
    import psutil
    import torch

    flops = {precision: product_flops(device, precision, seconds=seconds)}
    if device.startswith("cuda"):
        facts = torch.cuda.get_device_properties(device)
        return Machine(f"this {facts.name}", "cuda", flops, facts.total_memory, None, GPU_OWN_BYTES)
    own = psutil.Process().memory_info().rss
    threads = torch.get_num_threads()
    free = psutil.virtual_memory().available + own
    return Machine(f"this machine ({device}, threads: {threads})", device, flops, free, WATTS_A_CORE * threads, own)


def product_flops(device: str, precision: str, *, seconds: float) -> float:
    """FLOP/s of square matrix products, measured for so long after a first one."""
    import torch

    size = 8192 if device.startswith("cuda") else 1024
    left = torch.randn(size, size, device=device, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    float((left @ left)[0, 0])
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        float((left @ left)[0, 0])  # reading a number waits for the device
        count += 1
    return count * 2.0 * size**3 / passed

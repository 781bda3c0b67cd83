"""Float32 matrix products by oneDNN instead of MKL, on the processors where that is faster and rounds alike.

torch sends float32 products on a CPU to MKL, which is not at its best on AMD's processors: [256, 768] by the transpose
of [50257, 768] takes it 183 ms on two cores of an EPYC, oneDNN 97 (medians of 9; other products gain 3 to 30%). torch
hands products to oneDNN only under fp32_precision="bf16". Where a processor has bf16 matrix units (AMX), that means
rounded factors; where it has none, plain float32. So this is done on AMD's processors only, after products of several
shapes were compared with float64.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In units of float32's rounding, relative to the norms of the two vectors: MKL stays below 1, bf16 factors give 1e4.
ALLOWED_ERROR = 8.0


@contextmanager
def fast_float32_products() -> Iterator[None]:
    """While the body runs, float32 products on the CPU go to oneDNN if that is worth it here; else nothing changes.

    For products of a few shapes only: oneDNN keeps up to 3 MB for every shape that it meets, and has no limit that
    helped (ONEDNN_PRIMITIVE_CACHE_CAPACITY did not). Round a whole training step it cost 50 MB a step.
    """
    import torch

    if not onednn_is_better():
        yield
        return
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@functools.cache
def onednn_is_better() -> bool:
    """Whether this is an AMD processor on which oneDNN's products under "bf16" are products of float32."""
    import torch

    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_supported() and _is_amd()):
        return False
    if torch.cpu._is_amx_tile_supported():
        return False
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        return all(_error(*shape) < ALLOWED_ERROR for shape in ((64, 96, 512), (16, 768, 300), (200, 64, 64)))
    finally:
        setting.fp32_precision = before


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _error(rows: int, width: int, columns: int) -> float:
    """Largest error of left @ right in the four layouts, in units of float32's rounding of the vectors' norms."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, width, generator=generator)
    right = torch.randn(width, columns, generator=generator)
    exact = left.double() @ right.double()
    scale = left.double().norm(dim=1)[:, None] * right.double().norm(dim=0) * torch.finfo(torch.float32).eps
    results = [a @ b for a in (left, left.T.contiguous().T) for b in (right, right.T.contiguous().T)]
    return max(float(((result - exact).abs() / scale).max()) for result in results)

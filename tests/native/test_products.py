"""Products by oneDNN: only where they are products of float32, and only while asked for."""

import pytest
import torch

from kdrun.native import fast_float32_products, products

SHAPES = [(256, 768, 3000), (300, 1600, 2000), (3000, 256, 768), (64, 2048, 512), (1, 64, 5000), (7, 33, 129)]


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def test_the_setting_is_given_back_also_after_an_error() -> None:
    before = setting()
    with pytest.raises(RuntimeError, match="inside"), fast_float32_products(), fast_float32_products():
        raise RuntimeError("inside")
    assert setting() == before


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_exact_to_float32s_rounding(shape: tuple[int, int, int]) -> None:
    """Against float64; factors of bf16 would be off by ten thousand units."""
    with fast_float32_products():
        assert products._error(*shape) < products.ALLOWED_ERROR


def test_a_processor_that_would_round_the_factors_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AMX does: products of bf16 factors, whatever the vendor."""
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(products, "_is_amd", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(
        torch.Tensor, "__matmul__",
        lambda a, b: matmul(a, b) if a.dtype == torch.float64 else matmul(a.bfloat16().float(), b.bfloat16().float()),
    )  # fmt: skip
    products.onednn_is_better.cache_clear()
    try:
        assert not products.onednn_is_better()
    finally:
        products.onednn_is_better.cache_clear()


@pytest.mark.parametrize("name", ["_is_amd", "avx512"])
def test_other_processors_keep_torchs_choice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "avx512":
        monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    else:
        monkeypatch.setattr(products, name, lambda: False)
    products.onednn_is_better.cache_clear()
    before = setting()
    try:
        with fast_float32_products():
            assert setting() == before
    finally:
        products.onednn_is_better.cache_clear()

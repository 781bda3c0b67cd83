"""Model folders looked over without torch: real ones of several architectures pass, and each fault is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdrun.errors import UserError
from kdrun.models.folder import check_model, tensor_shapes
from kdrun.models.scratch import train_tokenizer

COMMON = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
          "intermediate_size": 24, "max_position_embeddings": 64}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "Llama": {**COMMON, "num_key_value_heads": 1},
    "Qwen2": {**COMMON, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "GPTNeoX": COMMON,
    # a table of tokens narrower than the model, and layers of several shapes
    "OPT": {**COMMON, "word_embed_proj_dim": 8, "ffn_dim": 24},
    "Mixtral": {**COMMON, "num_key_value_heads": 1, "num_local_experts": 2},
}


def save(folder: Path, name: str, **changes: Any) -> str:
    config = getattr(transformers, f"{name}Config")(**{**TINY[name], **changes})
    model = getattr(transformers, "OPTForCausalLM" if name == "OPT" else f"{name}ForCausalLM")(config)
    model.save_pretrained(folder, max_shard_size="20KB")
    train_tokenizer(["some text"], vocab_size=257).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_that_transformers_wrote_passes_whole_or_in_shards(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, name)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check_model(folder, key="student", max_tokens=64)


def test_the_shapes_are_those_of_the_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = save(tmp_path, "Llama")
    tensors: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        tensors |= load_file(file)
    assert tensor_shapes(Path(folder), key="student") == {name: tuple(value.shape) for name, value in tensors.items()}


def test_a_shard_of_one_layer_that_is_another_models_is_refused(tmp_path: Path) -> None:
    """Both are whole files; transformers would say "size mismatch" after seconds, in several lines."""
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path, "Llama")
    name = "model.layers.1.mlp.up_proj.weight"
    file = next(path for path in sorted(tmp_path.glob("*.safetensors")) if name in load_file(path))
    tensors = load_file(file)
    save_file(tensors | {name: torch.zeros(23, 16)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.N\.mlp\.up_proj\.weight 3 times, in 2 shapes"):
        check_model(folder, key="student")


def test_a_row_longer_than_the_positions_names_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.max_tokens=65: pair\.student=.* has 64 positions"):
        check_model(save(tmp_path, "Llama"), key="pair.student", max_tokens=65)


def test_a_hub_name_is_not_looked_at_and_a_folder_of_that_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_model("owner/none_such", key="student")
    assert not list(tmp_path.iterdir())
    (tmp_path / "owner" / "none_such").mkdir(parents=True)
    with pytest.raises(UserError, match=r"student=owner/none_such: .*config\.json"):
        check_model("owner/none_such", key="student")

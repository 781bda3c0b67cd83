"""head(hidden) is the model's own logits, for architectures that differ in their heads."""

import pytest
import torch
import transformers as hf

from kdrun.errors import UserError
from kdrun.models.heads import check_head, head_of, hidden_states

IDS = torch.arange(3, 15).reshape(2, 6)
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
MODELS = {
    "gpt2, tied": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)),
    "llama, untied": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=False)
    ),
    "qwen2, tied": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "gemma2, soft-cap": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0)
    ),
    "phi, bias": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SMALL)),
    "cohere, scale": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SMALL, logit_scale=0.25)),
    "granite, divisor": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**SMALL, logits_scaling=4.0)),
}


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if getattr(model.lm_head, "bias", None) is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_head_of_hidden_states_gives_the_models_own_logits(name: str) -> None:
    model = make(name)
    own = model(input_ids=IDS).logits
    torch.testing.assert_close(head_of(model)(hidden_states(model, IDS)), own, rtol=1e-5, atol=1e-6)
    assert check_head(model, IDS, name="student") < 1e-5


def test_an_architecture_whose_head_is_something_else_is_refused() -> None:
    model = make("gpt2, tied")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.1)
    with pytest.raises(UserError, match=r"student: head\(hidden\) differs"):
        check_head(model, IDS, name="student")


def test_a_cut_head_keeps_the_first_rows_with_their_bias() -> None:
    model = make("phi, bias")
    hidden = hidden_states(model, IDS)
    torch.testing.assert_close(head_of(model).cut(20)(hidden), model(input_ids=IDS).logits[..., :20])


def test_right_padding_does_not_change_earlier_hidden_states() -> None:
    for name in MODELS:
        model = make(name)
        padded = torch.cat([IDS, torch.zeros(2, 3, dtype=torch.long)], dim=1)
        torch.testing.assert_close(hidden_states(model, padded)[:, :6], hidden_states(model, IDS), rtol=1e-4, atol=1e-5)

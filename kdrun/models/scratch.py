"""The pair that kdrun makes itself: a byte-level BPE and GPT-2 shaped models with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdrun.errors import UserError

END = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """A byte-level BPE trained on the texts: any string can be encoded; END ends a text and pads.

    Deterministic in the texts and their order.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, bos_token=END)


def load_scratch_tokenizer(folder: str) -> Any:
    """A tokenizer from a folder with a tokenizer.json, with the end-of-text token of GPT-2 or LLaMA.

    Raises:
        UserError: when there is none, or it has no end-of-text token.
    """
    from kdrun.models.loading import load_tokenizer

    if not (Path(folder) / "tokenizer.json").is_file():
        raise UserError(f"pair.tokenizer={folder}: no tokenizer.json there; give a folder that holds one")
    return load_tokenizer(folder, key="pair.tokenizer")


def make_model(*, vocab_size: int, context: int, layers: int, width: int, heads: int, end_id: int, seed: int) -> Any:
    """A GPT-2 with random weights, no dropout, tied head.

    Args:
        seed: of the weights; the global random state is left as it was.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size, n_positions=context, n_layer=layers, n_embd=width, n_head=heads,
        # The same function as GPT-2's gelu_new in one fused kernel: a fifth of the tiny teacher's step.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end_id, eos_token_id=end_id, pad_token_id=end_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()

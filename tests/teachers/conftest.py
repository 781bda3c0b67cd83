"""Real teachers and students of both architectures, of some thousand parameters, and caches made of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdrun.data.encoding import EncodedSet
from kdrun.models.scratch import make_model
from kdrun.teachers.building import build, hidden_record
from kdrun.teachers.cached import CachedTeacher, dtype_name, open_cache, read_head, save_head
from kdrun.teachers.live import LiveTeacher
from kdrun.teachers.manifest import TeacherIdentity, identity_fields
from kdrun.teachers.store import SHARD_BYTES
from tests.training.conftest import END, VOCABULARY, encoded


def gpt2(seed: int, *, width: int) -> Any:
    """Tied head, no bias; the teacher's and the student's have the same rows."""
    return make_model(vocab_size=VOCABULARY, context=32, layers=2, width=width, heads=2, end_id=END, seed=seed)


def llama(seed: int, *, width: int) -> Any:
    """Untied head; the teacher's is padded to more rows than the student's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY + (8 if width > 8 else 0), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        tie_word_embeddings=False, eos_token_id=END, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


ARCHITECTURES = {"gpt2": gpt2, "llama": llama}


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Any:
    """A function (seed, width) -> model."""
    return ARCHITECTURES[request.param]


def identity_of(live: LiveTeacher, rows: EncodedSet, **fields: Any) -> dict[str, Any]:
    """Some identity: the values are for the manifest alone."""
    known = {
        "config_sha256": "c" * 64, "weights_sha256": "a" * 64, "tokenizer_sha256": "b" * 64,
        "dtype": dtype_name(live.head.weight_VD.dtype), "topk": None, "vocabulary": None, "template": "plain",
        "max_prompt_tokens": 8, "max_tokens": 32, "overlong": "drop", "torch": "2.13.0", "transformers": "5.23.0",
    }  # fmt: skip
    return identity_fields(TeacherIdentity(**{**known, **fields}), rows)


class Silent:
    """The progress of a build, counted."""

    def __init__(self, *_: Any, done: int = 0) -> None:
        self.done = done

    def __enter__(self) -> Any:
        return self.advance

    def __exit__(self, *_: Any) -> None:
        pass

    def advance(self, tokens: int) -> None:
        self.done += tokens


def make_cache(folder: Path, live: LiveTeacher, rows: EncodedSet, *, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """Build the cache of a set; returns its identity."""
    identity = identity_of(live, rows)
    weight = live.head.weight_VD
    build(
        folder, rows, hidden_record(live.hidden, width=weight.shape[1], dtype=weight.dtype), identity=identity,
        notes={"teacher": "tiny", "data": "numbers", "split": "train"}, head=save_head(live.head, folder.parent),
        pad_id=END, device="cpu", progress=Silent, shard_bytes=shard_bytes,
    )  # fmt: skip
    return identity


def cached_teacher(folder: Path, identity: dict[str, Any], *, rows: int | None = None) -> CachedTeacher:
    """The teacher that reads it."""
    shards = open_cache(folder, identity, key="teacher=cached")
    return CachedTeacher(shards, read_head(folder.parent, device="cpu", rows=rows))


@pytest.fixture
def rows() -> EncodedSet:
    return encoded(40)

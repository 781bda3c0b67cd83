"""Every family of models that the papers distil: head, objective, cache, training step and texts are the model's own.

Tiny random models of transformers' own classes. Each teacher is wider than its student, and its head is padded to more
rows than the vocabulary they share, as Qwen2.5's are. The reference takes the models' logits, a row at a time.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from kdrun.data.batch import make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.generation.generate import Generation, Sampling, generate
from kdrun.losses import make_loss
from kdrun.models.heads import check_head
from kdrun.teachers.live import LiveTeacher
from kdrun.training.loop import Loop, LoopSettings
from kdrun.training.objective import StudentObjective
from kdrun.training.placement import Placement
from tests.teachers.conftest import cached_teacher, make_cache
from tests.training.conftest import END, VOCABULARY, encoded

PADDED = VOCABULARY + 8
GROUPED = {"num_key_value_heads": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 5},
    "qwen2": {**GROUPED, "tie_word_embeddings": True},  # Qwen2.5 is of this class, too
    "qwen3": {**GROUPED, "head_dim": 4, "tie_word_embeddings": True},
    "gemma2": {**GROUPED, "head_dim": 4, "sliding_window": 5, "final_logit_softcapping": 3.0,
               "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 4, "attn_implementation": "eager"},
    "gemma3_text": {**GROUPED, "head_dim": 4, "sliding_window": 5, "final_logit_softcapping": 3.0},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 6, "dropout": 0.0},  # projected in and out, as the 350M model is
    "phi": {"resid_pdrop": 0.0},  # its head has a bias
    "gpt_neox": {"hidden_dropout": 0.0},
}  # fmt: skip


def make(family: str, *, width: int, rows: int, seed: int) -> Any:
    sizes = {
        "vocab_size": rows, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3, "init_std": 0.3,
        "bos_token_id": END, "eos_token_id": END, "pad_token_id": END,
    }  # fmt: skip
    settings = dict(FAMILIES[family])
    attention = settings.pop("attn_implementation", None)
    config = AutoConfig.for_model(family, **{**sizes, **settings})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    if (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
        torch.nn.init.normal_(bias)
    return model


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(student, teacher)."""
    return make(request.param, width=8, rows=VOCABULARY, seed=1), make(request.param, width=16, rows=PADDED, seed=2)


@pytest.fixture
def rows() -> EncodedSet:
    return encoded(9)


def scored_logits(model: Any, rows: EncodedSet) -> Tensor:
    """The model's own logits over the shared vocabulary, of every scored token; no batch, no padding."""
    parts = []
    for i in range(len(rows)):
        ids, num_prompt = rows.row(i)
        parts.append(model(torch.tensor(ids)[None].long()).logits[0, num_prompt - 1 : -1, :VOCABULARY])
    return torch.cat(parts)


def plain_objective(student: Any, teacher: Any, rows: EncodedSet, loss: str, kd_ratio: float) -> Tensor:
    """The sum of nats from whole logits."""
    target_N = torch.cat([torch.tensor(rows.row(i)[0][rows.row(i)[1] :]).long() for i in range(len(rows))])
    student_NV = scored_logits(student, rows)
    with torch.no_grad():
        teacher_NV = scored_logits(teacher, rows)
    divergence = make_loss(loss)(student_NV, teacher_NV).sum()
    return (1 - kd_ratio) * cross_entropy(student_NV, target_N, reduction="sum") + kd_ratio * divergence


def gradients(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_head_of_hidden_states_is_the_models_own_logits(pair: tuple[Any, Any], rows: EncodedSet) -> None:
    ids_1T = torch.tensor(rows.row(0)[0])[None].long()
    for model in pair:
        assert check_head(model, ids_1T, name="model") < 1e-5


def test_objective_and_gradient_are_those_of_whole_logits_live_and_cached(
    pair: tuple[Any, Any], rows: EncodedSet, tmp_path: Path
) -> None:
    student, model = pair
    identity = make_cache(tmp_path / "group" / "train", LiveTeacher(model, rows=None), rows, shard_bytes=2048)
    teachers = {
        "live": LiveTeacher(model, rows=VOCABULARY),
        "cached": cached_teacher(tmp_path / "group" / "train", identity, rows=VOCABULARY),
    }
    batch = make_batch(rows, range(len(rows)), pad_id=END, device="cpu")
    for loss in ("akl", "rkl"):
        student.zero_grad()
        expected = plain_objective(student, model, rows, loss, kd_ratio=0.7)
        expected.backward()
        expected_gradient = gradients(student).clone()
        for teacher in teachers.values():
            student.zero_grad()
            objective = StudentObjective(student, make_loss(loss), rows=VOCABULARY, kd_ratio=0.7, chunk_tokens=16)
            total = objective(batch, teacher)[0]
            total.backward()
            assert total.item() == pytest.approx(expected.item(), rel=1e-5)
            assert float((gradients(student) - expected_gradient).norm() / expected_gradient.norm()) < 1e-5


def test_a_step_of_the_loop_is_the_step_of_autograd_on_whole_logits(pair: tuple[Any, Any], rows: EncodedSet) -> None:
    student, teacher = pair
    reference = copy.deepcopy(student)
    settings = LoopSettings(
        num_steps=1, batch_size=len(rows), micro_batch_size=4, seed=0, clip_norm=None, learning_rate=lambda _: 0.1,
        log_every=1,
    )  # fmt: skip
    objective = StudentObjective(student, make_loss("akl"), rows=VOCABULARY, kd_ratio=0.5)
    placement = Placement(objective, lambda: torch.optim.SGD(student.parameters(), lr=0.1), Accelerator(cpu=True))
    loop = Loop(placement, rows, settings, teacher=LiveTeacher(teacher, rows=VOCABULARY), pad_id=END)
    loop.step(0)
    (plain_objective(reference, teacher, rows, "akl", kd_ratio=0.5) / rows.num_scored_tokens).backward()
    before = torch.cat([p.detach().flatten() for p in reference.parameters()])
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    after, found = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (reference, student))
    assert float((after - before).norm()) > 1e-3, "the weights moved"
    assert float((found - after).norm() / (after - before).norm()) < 1e-4


def test_greedy_texts_are_those_of_transformers(pair: tuple[Any, Any]) -> None:
    """A batch of prompts of several lengths, against model.generate on each alone."""
    student = pair[0]
    prompts = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7, 8], [11, 12]]
    texts = generate(
        student, prompts, Sampling(8, temperature=0), eos_id=END, pad_id=END, batch_size=4, seed=0
    )  # fmt: skip
    for prompt, text in zip(prompts, texts, strict=True):
        ids = student.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=8, pad_token_id=END, eos_token_id=END,
        )[0, len(prompt) :].tolist()  # fmt: skip
        finished = END in ids
        assert text == Generation(ids[: ids.index(END)] if finished else ids, finished)

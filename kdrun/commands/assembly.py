"""From a typed config to parts: data, tokenizer, student, teacher. Below this floor there is no config."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.config import Data, HubData, JsonlData, Pair, ScratchPair
from kdrun.data.encoding import EncodedSet, encode
from kdrun.data.examples import Example, Splits
from kdrun.data.sources import load_splits
from kdrun.data.template import render_prompt
from kdrun.errors import UserError
from kdrun.models.loading import load_model, load_tokenizer
from kdrun.models.scratch import load_scratch_tokenizer, make_model, train_tokenizer
from kdrun.models.vocabulary import shared_rows

log = logging.getLogger(__name__)


def load_data(data: Data) -> Splits:
    """The three splits of a data config, the training split cut to data.max_rows."""
    paths: dict[str, Any] = {}
    if isinstance(data, JsonlData):
        paths = {"path": data.path, "valid_path": data.valid_path, "test_path": data.test_path}
    elif isinstance(data, HubData):
        paths = {"path": data.path, "revision": data.revision}
    splits = load_splits(data.name, **paths)
    return Splits(splits.train[: data.max_rows], splits.valid, splits.test)


def encode_data(examples: list[Example], tokenizer: Any, data: Data, *, split: str) -> EncodedSet:
    """Tokens of a split; says how many rows were dropped for their prompt's length."""
    rows = encode(
        examples,
        tokenizer,
        template=data.template,
        max_prompt_tokens=data.max_prompt_tokens,
        max_tokens=data.max_tokens,
        overlong=data.overlong,
    )
    if rows.num_dropped:
        log.info(
            "%s: %d of %d rows dropped, their prompts are over data.max_prompt_tokens=%d",
            split, rows.num_dropped, len(examples), data.max_prompt_tokens,
        )  # fmt: skip
    return rows


def chosen_rows(available: int, wanted: int | None) -> list[int]:
    """Row numbers, in order, of a fixed random choice of `wanted` rows (all when None): the same whenever asked."""
    if wanted is None or wanted >= available:
        return list(range(available))
    return sorted(random.Random(0).sample(range(available), wanted))


@dataclass
class Models:
    """What a run works with; `rows` are the vocabulary rows that both heads share."""

    tokenizer: Any
    student: Any
    teacher: Any | None
    rows: int | None


def build_models(
    pair: Pair, data: Data, splits: Splits, *, role: str, needs_teacher: bool, seed: int, start: str | None = None
) -> Models:
    """The model to train and, when it is needed, its teacher, on the CPU.

    Args:
        role: student, or teacher (then `student` of the result is the teacher that is fine-tuned).
        start: a checkpoint to take the trained model from, instead of the pair's start.
    """
    if isinstance(pair, ScratchPair):
        tokenizer, student = _scratch_start(pair, data, splits, role=role, seed=seed, start=start)
        teacher_dtype, remote = "fp32", False
    else:
        reference, remote, teacher_dtype = getattr(pair, role), pair.trust_remote_code, pair.teacher_dtype
        tokenizer = load_tokenizer(reference, key=f"pair.{role}", trust_remote_code=remote)
        student = load_model(start or reference, key=f"pair.{role}", trust_remote_code=remote)
    if not needs_teacher:
        return Models(tokenizer, student, None, None)
    teacher, rows = load_teacher(pair.teacher, tokenizer, student, dtype=teacher_dtype, trust_remote_code=remote)
    return Models(tokenizer, student, teacher, rows)


def load_teacher(
    reference: str, tokenizer: Any, student: Any, *, dtype: str, trust_remote_code: bool, key: str = "pair.teacher"
) -> tuple[Any, int]:
    """A teacher model and the vocabulary rows that it shares with the student."""
    theirs = load_tokenizer(reference, key=key, trust_remote_code=trust_remote_code)
    teacher = load_model(reference, key=key, dtype=dtype, trust_remote_code=trust_remote_code)
    rows = shared_rows(
        theirs,
        tokenizer,
        teacher_rows=teacher.get_output_embeddings().weight.shape[0],
        student_rows=student.get_output_embeddings().weight.shape[0],
    )
    return teacher, rows


def _scratch_start(
    pair: ScratchPair, data: Data, splits: Splits, *, role: str, seed: int, start: str | None
) -> tuple[Any, Any]:
    """Tokenizer and start of a scratch pair's model: the teacher makes the tokenizer, the student takes it over."""
    if start is not None:
        return load_tokenizer(start, key="resume"), load_model(start, key="resume")
    if role == "student":
        if pair.student is not None:
            return load_tokenizer(pair.student, key="pair.student"), load_model(pair.student, key="pair.student")
        tokenizer = load_tokenizer(pair.teacher, key="pair.teacher")
    elif pair.tokenizer is not None:
        tokenizer = load_scratch_tokenizer(pair.tokenizer)
    else:
        tokenizer = train_tokenizer(_texts(splits.train, data), vocab_size=pair.vocab_size)
    size = {name: getattr(pair, f"{role}_{name}") for name in ("layers", "width", "heads")}
    model = make_model(
        vocab_size=len(tokenizer), context=pair.context, end_id=tokenizer.eos_token_id, seed=seed, **size
    )
    return tokenizer, model


def _texts(examples: list[Example], data: Data) -> list[str]:
    if data.template == "chat":
        raise UserError("data.template=chat: a tokenizer made by kdrun has no chat template; use plain or alpaca")
    return [text for example in examples for text in (render_prompt(example, data.template), example.response)]


def choose_device(wanted: str) -> str:
    """cpu, mps or cuda[:N] for a device key; auto takes the best that is there.

    Raises:
        UserError: when the device asked for is not there.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not (
        torch.cuda.is_available() and int(wanted.partition(":")[2] or 0) < torch.cuda.device_count()
    ):
        raise UserError(
            f"device={wanted}: torch sees {torch.cuda.device_count()} GPUs here; use device=auto or device=cpu"
        )
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: not available here; use device=auto or device=cpu")
    return wanted


def describe(model: Any) -> dict[str, Any]:
    """Architecture, parameters and weight hash of a model, for run.json."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(dtype=_bytes_of(tensor)).numpy().tobytes())
    return {
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": digest.hexdigest(),
    }


def _bytes_of(tensor: Any) -> Any:
    import torch

    return torch.uint8 if tensor.element_size() else tensor.dtype


def relative(path: str | Path) -> str:
    """A path as a person would type it: relative to the working directory when it lies below it."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

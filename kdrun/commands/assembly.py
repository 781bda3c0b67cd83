"""From a typed config to parts: data, tokenizer, student, teacher. Below this floor there is no config."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.commands.preconditions import check_quantised
from kdrun.config import (
    Data,
    Evaluation,
    HubData,
    JsonlData,
    Lora,
    Loss,
    Pair,
    ScratchPair,
    TrainConfig,
    loss_parameters,
)
from kdrun.data.encoding import EncodedSet
from kdrun.data.examples import Example, Splits
from kdrun.data.sources import load_splits
from kdrun.data.stored import encode_once
from kdrun.data.suites import load_suite, suite_name
from kdrun.data.template import render_prompt
from kdrun.errors import UserError
from kdrun.models.adapters import Adapted, add_adapter
from kdrun.models.loading import load_model, load_tokenizer, save_model
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


def chosen_loss(section: Loss) -> Any:
    """The loss of a loss config, with its gradient matched where that is asked.

    Raises:
        UserError: for a value that the loss refuses.
    """
    from kdrun.losses import MatchedGradient, make_loss

    try:
        loss = make_loss(section.name, **loss_parameters(section))
    except ValueError as error:
        raise UserError(f"loss={section.name}: {error}") from error
    return MatchedGradient(loss) if getattr(section, "match_grad_norm", False) else loss


def encode_data(examples: list[Example], tokenizer: Any, data: Data, *, split: str) -> EncodedSet:
    """Tokens of a split; says how many rows were dropped for their prompt's length."""
    rows = encode_once(
        examples,
        tokenizer,
        folder=None if data.encoded is None else Path(data.encoded),
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


@dataclass(frozen=True)
class EvaluationSet:
    """The examples of one evaluation, those with an overlong prompt left out, and their tokens; suite None: the split
    of the run's own data."""

    suite: str | None
    examples: list[Example]
    rows: EncodedSet


def evaluation_sets(
    settings: Evaluation, data: Data, tokenizer: Any, splits: Splits | None = None
) -> dict[str, EvaluationSet]:
    """What an evaluation looks at, by the name under which a teacher is asked about it: eval, or eval-SUITE.

    Args:
        splits: of the run's own data, when they are at hand; they are not needed for suites.
    """
    sources: dict[str | None, list[Example]] = {}
    if settings.suites is None:
        sources[None] = getattr(splits or load_data(data), settings.split)
    for name in settings.suites or ():
        sources[suite_name(name)] = load_suite(name, directory=settings.suites_path)
    sets = {}
    for suite, available in sources.items():
        examples = [available[i] for i in chosen_rows(len(available), settings.num_examples)]
        rows = encode_data(examples, tokenizer, data, split=suite or settings.split)
        kept = [examples[int(i)] for i in rows.example_index]
        sets["eval" if suite is None else f"eval-{suite}"] = EvaluationSet(suite, kept, rows)
    return sets


@dataclass(frozen=True)
class RunSets:
    """The rows of a training run, and those that its teacher is asked about, by name (train, valid, eval...)."""

    train: EncodedSet
    valid: EncodedSet
    evaluated: dict[str, EvaluationSet]
    asked: dict[str, EncodedSet]


def run_sets(config: TrainConfig, splits: Splits, tokenizer: Any, *, needs_teacher: bool) -> RunSets:
    """Tokens of what a run trains on, validates on and evaluates.

    Args:
        needs_teacher: whether the loss compares with one.
    """
    train = encode_data(splits.train, tokenizer, config.data, split="train")
    valid = encode_data(splits.valid, tokenizer, config.data, split="valid")
    valid = valid.subset(chosen_rows(len(valid), config.train.valid_rows))
    evaluated = evaluation_sets(config.eval, config.data, tokenizer, splits) if config.evaluate else {}
    asked = {"train": train} if needs_teacher else {}
    if config.role == "student":
        if needs_teacher or config.train.watch_teacher:
            asked["valid"] = valid
        asked |= {name: one.rows for name, one in evaluated.items()}
    return RunSets(train, valid, evaluated, asked)


@dataclass
class Models:
    """The model that is trained or evaluated, and the tokenizer of the run; adapter: those of the model, if any."""

    tokenizer: Any
    student: Any
    adapter: Adapted | None = None


def build_models(
    pair: Pair, data: Data, splits: Splits, *, role: str, seed: int, start: str | None = None, **quantised: Any
) -> Models:
    """The model to train, on the CPU.

    Args:
        role: student, or teacher (then `student` of the result is the teacher that is fine-tuned).
        start: a checkpoint to take the trained model from, instead of the pair's start.
        quantised: bits and products of `load_model`, for a pair of checkpoints.
    """
    if isinstance(pair, ScratchPair):
        return Models(*_scratch_start(pair, data, splits, role=role, seed=seed, start=start))
    reference, remote = getattr(pair, role), pair.trust_remote_code
    tokenizer = load_tokenizer(reference, key=f"pair.{role}", trust_remote_code=remote)
    model = load_model(start or reference, key=f"pair.{role}", trust_remote_code=remote, **quantised)
    return Models(tokenizer, model)


def run_models(
    config: TrainConfig, splits: Splits, *, device: str, resumed: Path | None
) -> tuple[Models, dict[str, Any]]:
    """The model that a run trains, with its adapter if it has one, and what run.json says of them.

    Args:
        resumed: the model's folder in the checkpoint that the run goes on from: of the adapter alone, where one is.
    """
    if not isinstance(config.adapter, Lora):
        start = None if resumed is None else str(resumed)
        models = build_models(config.pair, config.data, splits, role=config.role, seed=config.seed, start=start)
        return models, {"student_start": describe(models.student)}
    quantised: dict[str, Any] = {}
    if config.adapter.quantise is not None:
        products = choose_precision(config.train.precision, device)
        quantised = {"bits": int(config.adapter.quantise[0]), "products": products}
    models = build_models(config.pair, config.data, splits, role=config.role, seed=config.seed, **quantised)
    base = describe(models.student)
    models.adapter = _with_adapter(models.student, config, resumed)
    trainable = sum(p.numel() for p in models.student.parameters() if p.requires_grad)
    return models, {"student_start": base | {"trainable_parameters": trainable}, "base": {"sha256": base["sha256"]}}


def _with_adapter(model: Any, config: TrainConfig, folder: Path | None) -> Adapted:
    values = config.adapter.model_dump(include={"r", "alpha", "dropout", "targets"})
    adapted = add_adapter(model, seed=config.seed, **values)
    if folder is not None:
        adapted.load(folder)
    return adapted


def save_trained(models: Models, config: TrainConfig, folder: Path) -> None:
    """Write the trained model and its tokenizer; adapters are merged into it, and lie beside it in adapter/."""
    if models.adapter is None:
        return save_model(models.student, models.tokenizer, folder)
    models.adapter.save_pretrained(folder / "adapter")
    merged = models.adapter
    if isinstance(config.adapter, Lora) and config.adapter.quantise is not None:  # in 4 bits most of it would be lost
        key, remote = f"pair.{config.role}", bool(getattr(config.pair, "trust_remote_code", False))
        whole = load_model(getattr(config.pair, config.role), key=key, trust_remote_code=remote)
        merged = _with_adapter(whole, config, folder / "adapter")
    return save_model(merged.model, models.tokenizer, folder, weights=merged.merge())


def load_teacher(
    reference: str,
    tokenizer: Any,
    student: Any,
    *,
    dtype: str,
    trust_remote_code: bool,
    key: str = "pair.teacher",
    bits: int | None = None,
) -> tuple[Any, int]:
    """A teacher model and the vocabulary rows that it shares with the student."""
    if bits is not None:
        check_quantised("pair.teacher_bits", bits)
    theirs = load_tokenizer(reference, key=key, trust_remote_code=trust_remote_code)
    teacher = load_model(reference, key=key, dtype=dtype, trust_remote_code=trust_remote_code, bits=bits)
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


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """torch on so many CPU threads while the body runs; None: on as many as it has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(wanted: str, *, key: str = "train.device") -> str:
    """cpu, mps or cuda[:N] for a device key; auto takes the best that is there.

    Raises:
        UserError: naming `key`, when the device asked for is not there.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not (
        torch.cuda.is_available() and int(wanted.partition(":")[2] or 0) < torch.cuda.device_count()
    ):
        raise UserError(
            f"{key}={wanted}: torch sees {torch.cuda.device_count()} GPUs here; type {key}=auto or {key}=cpu"
        )
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{key}=mps: not available here; type {key}=auto or {key}=cpu")
    return wanted


def choose_precision(wanted: str, device: str) -> str:
    """fp32 or bf16, of the matrix products in training; auto takes bf16 where the device multiplies it faster."""
    import torch

    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    on_cpu = device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if on_cpu else "fp32"


def describe(model: Any) -> dict[str, Any]:
    """Architecture, parameters and weight hash of a model, for run.json."""
    import hashlib

    from kdrun.training.sharding import whole

    digest = hashlib.sha256()
    for name, tensor in sorted((name, whole(tensor)) for name, tensor in model.state_dict().items()):
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

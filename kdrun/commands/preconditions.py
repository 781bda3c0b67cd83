"""What can be refused before torch is imported: missing files, bad lines, a resumed run that is not the same."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kdrun.config import (
    CachedTeacher,
    Data,
    EmbeddedData,
    EvaluateConfig,
    Evaluation,
    HubData,
    JsonlData,
    Lora,
    Pair,
    PretrainedPair,
    ScratchPair,
    TrainConfig,
    loss_parameters,
)
from kdrun.errors import UserError
from kdrun.models.folder import check_model, read_tokenizer
from kdrun.models.loading import locate
from kdrun.runs.directory import RunDirectory, flatten
from kdrun.runs.gpus import visible_gpus

# What a teacher that kdrun made must have in common with a run that takes it.
MADE_FOR = {
    "pair": ("tokenizer", "vocab_size", "context", "teacher_layers", "teacher_width", "teacher_heads"),
    "data": ("name", "path", "template", "max_prompt_tokens", "max_tokens"),
}


def check_train(config: TrainConfig) -> None:
    """Files and folders that a train config names exist and parse.

    Raises:
        UserError: naming the key.
    """
    pair = config.pair
    missing = missing_teacher(config)
    cached = isinstance(config.teacher, CachedTeacher)
    check_data(config.data, tokenizer=None if missing else _tokenizer_file(config))
    check_teacher(config)
    check_libraries(config)
    if getattr(config.rollout, "server", None) is not None:
        from kdrun.generation.endpoint import read_key

        read_key(getattr(config.rollout, "key_env", None), key="rollout.key_env")
    if config.evaluate:
        check_scoring(config.eval)
    if isinstance(pair, ScratchPair):
        if pair.tokenizer is not None and not (Path(pair.tokenizer) / "tokenizer.json").is_file():
            raise UserError(f"pair.tokenizer={pair.tokenizer}: no tokenizer.json there; give a folder that holds one")
        if pair.student is not None:
            check_model(pair.student, key="pair.student", max_tokens=config.data.max_tokens)
        if config.role == "student" and missing is None:
            check_scratch_teacher(config, pair)
            check_model(pair.teacher, key="pair.teacher", max_tokens=config.data.max_tokens, bodiless=cached)
        return
    if config.role == "teacher" or config.loss.name != "sft":
        check_model(pair.teacher, key="pair.teacher", max_tokens=config.data.max_tokens, bodiless=cached)
    if config.role == "student":
        check_model(pair.student, key="pair.student", max_tokens=config.data.max_tokens)


def _tokenizer_file(config: TrainConfig) -> Path | None:
    """The tokenizer.json of a run's student, where it lies on this machine."""
    pair = config.pair
    role = "teacher" if config.role == "teacher" or pair.student is None else "student"
    if isinstance(pair, ScratchPair) and config.role == "teacher":
        return None if pair.tokenizer is None else Path(pair.tokenizer) / "tokenizer.json"
    path = Path(locate(getattr(pair, role), key=f"pair.{role}")) / "tokenizer.json"
    return path if path.is_file() else None


def check_libraries(config: TrainConfig) -> None:
    """peft, DeepSpeed, bitsandbytes with a GPU, and a C++ compiler are there, where the run asks for them.

    Raises:
        UserError: naming the key.
    """
    if isinstance(adapter := config.adapter, Lora):
        if find_spec("peft") is None:
            raise UserError("adapter.kind=lora: needs peft; type pip install 'kdrun[lora]', or adapter=none")
        if adapter.quantise is not None:
            check_quantised("adapter.quantise", adapter.quantise, device=config.train.device)
    if config.launch.kind == "deepspeed" and find_spec("deepspeed") is None:
        raise UserError("launch=deepspeed: needs its package; type pip install 'kdrun[deepspeed]', or launch=fsdp")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch chooses it
    if config.train.compile and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile=true: needs a C++ compiler, no {compiler} here; set CXX, or type train.compile=false"
        )
    bits = getattr(config.pair, "teacher_bits", None)
    if bits is not None and config.role == "student" and not isinstance(config.teacher, CachedTeacher):
        check_quantised("pair.teacher_bits", bits, device=config.train.device)


def check_quantised(key: str, value: object, *, device: str = "auto") -> None:
    """bitsandbytes is there, and a CUDA GPU that `device` allows.

    Raises:
        UserError: naming `key`, when one is not.
    """
    cuda = device.startswith(("auto", "cuda"))
    if not cuda or not visible_gpus():
        why = "there is none here" if cuda else f"train.device={device} is none"
        raise UserError(f"{key}={value}: bitsandbytes needs a CUDA GPU, and {why}; type {key}=null")
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{key}={value}: needs bitsandbytes; type pip install 'kdrun[quantise]', or {key}=null")


def check_teacher(config: TrainConfig) -> None:
    """teacher.path is a folder of caches; a lossy cache can serve the loss.

    Raises:
        UserError: naming the key.
    """
    if not isinstance(config.teacher, CachedTeacher):
        return
    if config.teacher.topk is not None:
        check_topk(config, config.teacher.topk)
    if config.teacher.path is None:
        return
    folder = Path(config.teacher.path)
    if not any(folder.glob("*/manifest.json")):
        raise UserError(
            f"teacher.path={folder}: {'no caches in it' if folder.is_dir() else 'no such folder'}; give a folder that "
            "`kdrun cache ls` lists, or leave it out to have one made"
        )
    from kdrun.teachers.manifest import read_manifest
    from kdrun.teachers.store import check_sizes

    for path in sorted(folder.glob("*/manifest.json")):
        check_sizes(path.parent, read_manifest(path.parent))


def check_topk(config: TrainConfig, topk: int) -> None:
    """The loss can be taken between the likeliest entries and a rest.

    Raises:
        UserError: when it cannot, with the reason.
    """
    from kdrun.losses import LOSSES, make_loss
    from kdrun.losses.buckets import check_served

    try:
        check_served(make_loss(config.loss.name, **loss_parameters(config.loss)))
    except ValueError as error:
        served = ",".join(name for name, loss in LOSSES.items() if loss.is_f_divergence)
        raise UserError(
            f"teacher.topk={topk}: a lossy cache cannot serve loss={config.loss.name} ({error}); type "
            f"teacher.topk=null for the exact cache, or one of loss={served}"
        ) from error


def check_scratch_teacher(config: TrainConfig, pair: ScratchPair) -> None:
    """The scratch pair's teacher is there, and was made for this pair and this data."""
    locate(pair.teacher, key="pair.teacher")
    folder = Path(pair.teacher)
    if folder.parent.name != "teachers" or not (folder / "run.json").exists():
        return  # a teacher of the person's own: the checkpoint says what it is
    made = RunDirectory.open(folder, key="pair.teacher").config()
    for group, keys in MADE_FOR.items():
        want, have = getattr(config, group).model_dump(mode="json"), made.get(group, {})
        for key in keys:
            if key in have and have[key] != want.get(key):
                raise UserError(
                    f"{group}.{key}={want.get(key)}: the teacher at {folder} was made with {group}.{key}={have[key]}; "
                    f"take the same, or give this one a place of its own, for example pair.teacher={folder}-2"
                )


def missing_teacher(config: TrainConfig) -> Path | None:
    """The folder where kdrun must make the scratch pair's teacher first, or None.

    Only in a folder named teachers/ (the default place): a mistyped path elsewhere is an error, not a fine-tuning.
    """
    if not isinstance(config.pair, ScratchPair) or config.role == "teacher":
        return None
    folder = Path(config.pair.teacher)
    if folder.parent.name != "teachers":
        return None
    if (folder / "run.json").exists():
        return None if RunDirectory.open(folder, key="pair.teacher").model_folder() else folder
    return None if folder.exists() else folder


def check_evaluate(config: EvaluateConfig) -> None:
    """Files and folders that an evaluate config names exist and parse.

    Raises:
        UserError: naming the key.
    """
    check_scoring(config.eval)
    if config.data is not None:
        check_data(config.data)
    for key, reference in (("student", config.student), ("teacher", config.teacher_path)):
        if reference is not None:
            check_model(reference, key=key)
    if config.run is not None:
        run = RunDirectory.open(config.run, key="run")
        if run.model_folder() is None:
            raise UserError(
                f"run={config.run}: has no student/ or teacher/ model; its status is {run.record.get('status')}"
            )
        pair, _ = recorded_parts(run)
        if config.role != "teacher":
            check_model(config.run, key="run")
        if config.teacher_path is None and run.config().get("role") != "teacher":
            check_model(pair.teacher, key="pair.teacher")
    if isinstance(config.pair, PretrainedPair) and config.role == "sft" and config.pair.sft is None:
        raise UserError(f"role=sft: pair={config.pair.name} names no published fine-tuned student")


def check_scoring(settings: Evaluation) -> None:
    """Suites, scoring models and harness tasks are there (fetched from the hub), before anything is generated for them.

    Raises:
        UserError: naming the key.
    """
    from kdrun.data.suites import check_suites
    from kdrun.evaluation.bartscore import find_seq2seq
    from kdrun.evaluation.bertscore import read_baseline
    from kdrun.evaluation.encoder import find_model
    from kdrun.evaluation.harness import fetch_harness

    check_suites(settings.suites or (), settings.suites_path)
    if settings.bertscore:
        find_model(settings.bertscore_model)
        if settings.bertscore_baseline is not None:
            read_baseline(settings.bertscore_baseline)
    if settings.bartscore_model is not None:
        find_seq2seq(settings.bartscore_model)
    fetch_harness(settings.harness, settings.harness_path)


def recorded_parts(run: RunDirectory) -> tuple[Pair, Data]:
    """The pair and the data of a run, from its config.yaml.

    Raises:
        UserError: when they are not there, or are not what this kdrun writes.
    """
    ran = run.config()
    try:
        return TypeAdapter(Pair).validate_python(ran.get("pair")), TypeAdapter(Data).validate_python(ran.get("data"))
    except ValidationError as error:
        at = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{run.path / 'config.yaml'}: is not the config of a training ({at or 'pair'}: "
                        f"{error.errors()[0]['msg']})") from error  # fmt: skip


def check_data(data: Data, *, tokenizer: Path | None = None) -> None:
    """Local data files and the corpus exist and every line of them parses; some prompt is short enough.

    Args:
        tokenizer: a tokenizer.json to count with; None does not count.

    Raises:
        UserError: naming the key, or file and line.
    """
    if data.corpus is not None:
        from kdrun.data.corpus import check_corpus

        check_corpus(data.corpus)
    if isinstance(data, JsonlData):
        from kdrun.data.encoding import check_some_prompt_fits
        from kdrun.data.jsonl import iterate_jsonl
        from kdrun.data.sources import check_jsonl_splits
        from kdrun.data.template import render_prompt

        check_jsonl_splits(data.path, data.valid_path, data.test_path)
        if tokenizer is not None and data.overlong == "drop" and data.template != "chat":
            read = read_tokenizer(tokenizer, key="data.max_prompt_tokens")
            check_some_prompt_fits(
                (render_prompt(example, data.template) for example in iterate_jsonl(data.path)),
                lambda prompt: len(read.encode(prompt, add_special_tokens=False)),
                max_prompt_tokens=data.max_prompt_tokens,
            )
    elif isinstance(data, HubData):
        if data.path is not None and not Path(data.path).is_dir():
            raise UserError(
                f"data.path={data.path}: no such folder; give a folder of the hub set's shape, or null for the hub"
            )
    else:
        assert isinstance(data, EmbeddedData)


def check_resume(config: TrainConfig, run: RunDirectory, named: list[str]) -> None:
    """A resumed run has the config that it was started with, but for keys named on the command line.

    Raises:
        UserError: naming the keys that differ.
    """
    whole = any(run.path.glob("checkpoints/step-*/state.json"))
    if run.record.get("status") == "done" and not (named and whole):
        why = "name what to change (train.max_steps=N)" if whole else "it kept no checkpoints (train.save_every)"
        raise UserError(f"resume={run.path}: this run is done; to train it further, {why}")
    before, now = flatten(run.config()), flatten(config.model_dump(mode="json"))
    ignored = {"resume", "name", "launch", *named}
    differ = sorted(
        k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and not {k, k.split(".")[0]} & ignored
    )
    if differ:
        key = differ[0]
        raise UserError(
            f"resume={run.path}: the run was started with {key}={before.get(key)}, now {key}={now.get(key)} "
            f"(differing: {', '.join(differ)}); name a key on the command line to change it on purpose"
        )


# What a run is made of, as run.json has it, and the groups whose words change it on purpose.
MATERIAL = {
    ("data", "sha256"): "data", ("data", "valid_sha256"): "data",
    ("teacher", "sha256"): "pair", ("teacher", "weights_sha256"): "pair", ("base", "sha256"): "pair",
}  # fmt: skip


def check_material(run: RunDirectory, facts: Mapping[str, Any]) -> None:
    """A run that goes on from a checkpoint has the rows and the teacher that it had, unless other words were typed.

    Args:
        facts: of this attempt, as they will stand in run.json.

    Raises:
        UserError: when a file has changed under the same words.
    """
    record = run.record
    earlier = next((attempt for attempt in reversed(record["attempts"]) if "data" in attempt), None)
    if earlier is None:
        return
    for (part, key), group in MATERIAL.items():
        before, now = ((of.get(part) or {}).get(key) for of in (earlier, facts))
        words = [[w for w in of["overrides"] if re.match(rf"[+~]*{group}[.=]", w)] for of in (earlier, record)]
        if before is not None and now is not None and before != now and words[0] == words[1]:
            rows = " and ".join(f"{of['data']['rows']:,} rows" for of in (earlier, facts)) if part == "data" else ""
            raise UserError(
                f"resume={run.path}: {part}.{key} was {before[:12]}..., now {now[:12]}...{rows and f' ({rows})'}: the "
                f"{part} has changed since the checkpoint; put the old files back, or start a new run"
            )

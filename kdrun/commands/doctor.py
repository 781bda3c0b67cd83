"""kdrun doctor: the environment, then the canaries on a few rows of the training that its words name."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.canaries.environment import environment
from kdrun.canaries.finding import Finding
from kdrun.commands.assembly import (
    Models,
    build_models,
    choose_device,
    chosen_loss,
    cpu_threads,
    encode_data,
    load_data,
)
from kdrun.commands.preconditions import missing_teacher
from kdrun.commands.teachers import live_teacher, shared_rows_of
from kdrun.config import ScratchPair, TrainConfig
from kdrun.data.encoding import EncodedSet
from kdrun.data.examples import Example, Splits
from kdrun.errors import UserError
from kdrun.models.loading import load_tokenizer, quiet_libraries, save_model
from kdrun.runs.directory import write_json

if TYPE_CHECKING:
    from kdrun.canaries.patient import Patient

NUM_ROWS, NUM_HELD_OUT = 8, 32
SMALL = 20_000_000  # parameters
NUM_ENCODED = 512  # examples that are encoded to find those rows: an overlong prompt is dropped


def doctor(config: TrainConfig, *, json: Path | None) -> bool:
    """Print one line a check, as it comes; returns whether none failed. Nothing else is left, but for the file `json`
    when one is named."""
    from kdrun.canaries.checklist import examined

    quiet_libraries()
    started, found = time.monotonic(), {}
    outputs = Path(os.environ.get("KDRUN_OUTPUTS", "outputs"))
    constraints = Path(__file__).parents[2] / "constraints.txt"
    checks = environment(outputs=outputs, constraints=constraints, tracking=config.track.mode)
    with tempfile.TemporaryDirectory(prefix="kdrun-doctor-") as folder:
        for title, findings in {
            "environment": (examined(name, check) for name, check in checks.items()),
            f"pair={config.pair.name} data={config.data.name} loss={config.loss.name}": examine(config, Path(folder)),
        }.items():
            print(title)
            found[title] = [_shown(finding) for finding in findings]
    all_found = [finding for part in found.values() for finding in part]
    counts = {verdict: sum(f.verdict == verdict for f in all_found) for verdict in ("ok", "warning", "skipped", "FAIL")}
    seconds = round(time.monotonic() - started, 1)
    print(f"{', '.join(f'{count} {verdict}' for verdict, count in counts.items())} ({seconds} s)")
    if json is not None:
        findings_of = {title: [asdict(finding) for finding in part] for title, part in found.items()}
        write_json(json, {"counts": counts, "seconds": seconds, "findings": findings_of})
    return not counts["FAIL"]


def _shown(finding: Finding) -> Finding:
    print(f"  {finding.verdict:<8} {finding.name:<17} {finding.measured}")
    if finding.remedy and finding.verdict != "ok":
        print(f"{'':28}-> {finding.remedy}", flush=True)
    return finding


def examine(config: TrainConfig, folder: Path) -> Iterator[Finding]:
    """The canaries one after another; those that cannot be run are named.

    Args:
        folder: for what is needed meanwhile.
    """
    from kdrun.canaries.checklist import examined, look_over
    from kdrun.canaries.heldout import teacher_is_better
    from kdrun.canaries.texts import same_ids

    try:
        admitted = _admit(config, folder)
    except UserError as error:
        yield Finding("training", "FAIL", str(error), "the training itself would end here; no canary was run")
        return
    yield from admitted.findings
    # Small tensors on several threads mostly wait: on two busy cores the doctor took 30 s with two, 15 s with one.
    small = sum(p.numel() for p in admitted.patient.student.parameters()) < SMALL
    with cpu_threads(1 if small else None):
        yield from look_over(admitted.patient)
        if admitted.patient.teacher is not None:
            yield examined("tokenizers", lambda: same_ids(admitted.patient, admitted.teacher_tokenizer))
            if admitted.stand_in:
                yield Finding("held-out", "skipped", "it needs a trained teacher, and a random one stands in")
                return
            untrained = isinstance(config.pair, ScratchPair) and config.pair.student is None
            yield examined(
                "held-out", lambda: teacher_is_better(admitted.patient, admitted.held_out, untrained=untrained)
            )


@dataclass(frozen=True)
class _Admitted:
    """A training's parts, and what was found while they were loaded. stand_in: the teacher is a random one."""

    patient: Patient
    held_out: EncodedSet
    teacher_tokenizer: Any
    stand_in: bool
    findings: list[Finding]


def _admit(config: TrainConfig, folder: Path) -> _Admitted:
    """Load what `kdrun train` would, with as few rows as do.

    Raises:
        UserError: where the training would end with one; a teacher that cannot be loaded is a finding.
    """
    from kdrun.teachers.live import LiveTeacher

    device, loss, findings = choose_device(config.train.device), chosen_loss(config.loss), []
    splits = load_data(config.data)
    pair, stand_in = config.pair, missing_teacher(config)
    if stand_in is not None:
        made = build_models(pair, config.data, splits, role="teacher", seed=config.seed)
        save_model(made.student, made.tokenizer, folder / "teacher")
        pair = pair.model_copy(update={"teacher": str(folder / "teacher")})
    models = build_models(pair, config.data, splits, role=config.role, seed=config.seed)
    models.student.to(device)
    data = config.data.model_copy(update={"encoded": None})
    rows, held_out = (
        encode_data(examples[:NUM_ENCODED], models.tokenizer, data, split=split)
        for split, examples in (("train", splits.train), ("valid", splits.valid))
    )
    teacher = teacher_tokenizer = None
    if config.role == "student" and (loss.needs_teacher or config.train.watch_teacher):
        try:
            whole, shared = live_teacher(
                pair.teacher, models, rows, pair=pair, device=device, max_tokens=config.data.max_tokens
            )
            teacher = LiveTeacher(whole.model, rows=shared)
            teacher_tokenizer = load_tokenizer(
                pair.teacher, key="pair.teacher", trust_remote_code=bool(getattr(pair, "trust_remote_code", False))
            )
            findings.append(_which_teacher(config.pair.teacher, stand_in))
        except UserError as error:
            findings.append(Finding("teacher is there", "FAIL", str(error), "canaries that need it are skipped"))
    patient = patient_of(config, models, loss, rows, splits.train, teacher=teacher, num_rows=NUM_ROWS)
    few = held_out.subset(range(min(NUM_HELD_OUT, len(held_out))))
    return _Admitted(patient, few, teacher_tokenizer, stand_in is not None, findings)


def _which_teacher(reference: str, stand_in: Path | None) -> Finding:
    if stand_in is None:
        return Finding("teacher is there", "ok", reference)
    said = f"none at {stand_in} yet; one with random weights stands in for it here"
    return Finding("teacher is there", "warning", said, "kdrun train fine-tunes it first, once")


def patient_of(
    config: TrainConfig, models: Models, loss: Any, rows: EncodedSet, examples: Sequence[Example], *, teacher: Any,
    num_rows: int,
) -> Patient:  # fmt: skip
    """The first rows of a training and its models, for the canaries.

    Args:
        examples: those that `rows` was encoded from.
    """
    import numpy as np

    from kdrun.canaries.patient import Patient, by_hand

    data, numbers = config.data, np.arange(min(num_rows, len(rows)))
    hand = by_hand(
        [examples[int(i)] for i in rows.example_index[numbers]], models.tokenizer, template=data.template,
        max_prompt_tokens=data.max_prompt_tokens, max_tokens=data.max_tokens,
    )  # fmt: skip
    return Patient(
        models.student, models.tokenizer, loss, rows, numbers, hand,
        shared=shared_rows_of(teacher) or models.student.get_output_embeddings().weight.shape[0], teacher=teacher,
        mix=config.loss.model_dump(include={"kd_ratio", "temperature", "temperature_squared"}),
    )  # fmt: skip


def check_start(
    config: TrainConfig, models: Models, loss: Any, rows: EncodedSet, splits: Splits, *, teacher: Any, accelerator: Any
) -> dict[str, float | None]:
    """{canary: figure} of the cheap canaries on a training's own first rows, on its device and in its precision.

    Raises:
        UserError: naming the canary that fails.
    """
    from kdrun.canaries.start import NUM_ROWS, check_first_rows

    models.student.to(accelerator.device)
    patient = patient_of(config, models, loss, rows, splits.train, teacher=teacher, num_rows=NUM_ROWS)
    with accelerator.autocast():
        return check_first_rows(patient)

"""kdrun train: one distillation or one fine-tuning, from a typed config to a finished run directory."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.commands.assembly import (
    Models,
    build_models,
    choose_device,
    chosen_rows,
    describe,
    encode_data,
    load_data,
    relative,
)
from kdrun.commands.evaluate import evaluate_model
from kdrun.config import TrainConfig, loss_parameters
from kdrun.data.encoding import EncodedSet
from kdrun.data.unicode_names import unidata_version
from kdrun.errors import UserError
from kdrun.models.loading import quiet_libraries, save_model
from kdrun.runs.directory import MetricsFile, RunDirectory, drop_lines_after, write_json
from kdrun.runs.progress import progress
from kdrun.runs.tracker import Tracker
from kdrun.training.checkpoints import Checkpoint, find_checkpoints, save_checkpoint

log = logging.getLogger(__name__)

# What the bar shows, in this order, when a report has it.
SHOWN = {"loss": "loss", "fkl": "FKL", "rkl": "RKL", "head_gap": "head", "tail_gap": "tail", "akl_weight": "a"}


def train(config: TrainConfig, directory: Path, *, overrides: Sequence[str], group: str | None) -> float:
    """Run a train config in `directory`. Returns what a search minimises: FKL to the teacher on the validation rows,
    or the student's NLL when no teacher is at hand."""
    run = RunDirectory.start(
        directory,
        command="train",
        config=config.model_dump(mode="json"),
        overrides=_without_resume(overrides),
        extra={"name": config.name, "group": group},
    )
    with run.recorded():
        return Training(config, run, group=group).run_all()


def _without_resume(overrides: Sequence[str]) -> list[str]:
    """The words that start the same run again: what only resuming adds is left out."""
    return [word for word in overrides if word.split("=")[0].lstrip("+") not in ("resume", "hydra.run.dir")]


class Training:
    """The parts of one run and the order in which they work."""

    def __init__(self, config: TrainConfig, run: RunDirectory, *, group: str | None) -> None:
        self.config, self.run, self.group = config, run, group
        self.checkpoints = run.path / "checkpoints"
        found = find_checkpoints(self.checkpoints) if config.resume else []
        self.resumed: Checkpoint | None = found[-1] if found else None
        self.metrics: dict[str, Any] = {}

    def run_all(self) -> float:
        """Load, check, train, save, validate, evaluate; the run directory holds everything at the end."""
        import torch

        config, started = self.config, time.monotonic()
        quiet_libraries()
        device = choose_device(config.train.device)
        torch.manual_seed(config.seed)
        splits = load_data(config.data)
        loss = self._loss()
        models = build_models(
            config.pair, config.data, splits, role=config.role, seed=config.seed,
            needs_teacher=loss.needs_teacher or (config.role == "student" and config.train.watch_teacher),
            start=str(self.resumed.student) if self.resumed else None,
        )  # fmt: skip
        rows = encode_data(splits.train, models.tokenizer, config.data, split="train")
        valid = encode_data(splits.valid, models.tokenizer, config.data, split="valid")
        valid = valid.subset(chosen_rows(len(valid), config.train.valid_rows))
        self._check_context(models)
        self._preflight(models, rows)
        self._note(models, rows, valid)
        tracker = self._tracker()
        try:
            self._optimise(models, loss, rows=rows, valid=valid, tracker=tracker, device=device)
            self._save(models)
            self.metrics["train_s"] = round(time.monotonic() - started, 2)
            if config.evaluate:
                summary = evaluate_model(
                    models, splits, config.data, config.eval, directory=self.run.path / "eval" / config.eval.name,
                    teacher=config.pair.teacher if config.role == "student" else None, pair=config.pair, device=device,
                )  # fmt: skip
                self.metrics |= {f"eval/{name}": value for name, value in summary.items()}
        except BaseException:
            tracker.finish(self.metrics, failed=True)
            raise
        write_json(self.run.path / "summary.json", self.metrics)
        tracker.finish(self.metrics)
        log.info("done: %s", relative(self.run.path))
        return float(self.metrics.get("valid/fkl", self.metrics["valid/nll"]))

    # -- parts --------------------------------------------------------------------------------------------------------

    def _loss(self) -> Any:
        from kdrun.losses import make_loss

        try:
            return make_loss(self.config.loss.name, **loss_parameters(self.config.loss))
        except ValueError as error:
            raise UserError(f"loss={self.config.loss.name}: {error}") from error

    def _check_context(self, models: Models) -> None:
        for role, model in (("student", models.student), ("teacher", models.teacher)):
            limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
            if limit is not None and self.config.data.max_tokens > limit:
                raise UserError(
                    f"data.max_tokens={self.config.data.max_tokens}: the {role} has {limit} positions; lower it"
                )

    def _preflight(self, models: Models, rows: EncodedSet) -> None:
        """head(hidden) is the model's own logits, on a few rows, for both models."""
        from kdrun.data.scored import collate
        from kdrun.models.heads import check_head

        ids, _ = collate([rows.row(i) for i in range(min(2, len(rows)))], models.tokenizer.pad_token_id)
        for role, model in (("student", models.student), ("teacher", models.teacher)):
            if model is not None:
                check_head(model, ids, name=role)

    def _note(self, models: Models, rows: EncodedSet, valid: EncodedSet) -> None:
        """What was really loaded, into run.json."""
        facts: dict[str, Any] = {
            "data": {
                "rows": len(rows),
                "dropped": rows.num_dropped,
                "scored_tokens": rows.num_scored_tokens,
                "sha256": rows.fingerprint(),
                "unicode": unidata_version(),
                "valid_rows": len(valid),
                "valid_sha256": valid.fingerprint(),
            },
            "student_start": describe(models.student),
        }
        if models.teacher is not None:
            facts["teacher"] = {"reference": str(self.config.pair.teacher), **describe(models.teacher)}
            facts["shared_vocabulary"] = models.rows
        if self.resumed:
            facts["resumed_from_step"] = self.resumed.step
        self.run.note(**facts)

    def _tracker(self) -> Tracker:
        config = self.config
        tracker = Tracker(
            config.track.mode,
            directory=self.run.path,
            project=config.track.project,
            entity=config.track.entity,
            name=config.name if self.group is None else f"{config.name}-{self.run.path.name}",
            group=self.group,
            job_type="train",
            tags=[config.loss.name, config.data.name, config.pair.name],
            config=config.model_dump(mode="json"),
            run_id=self._earlier_tracker_id(),
        )
        self.run.note(wandb_id=tracker.run_id)
        return tracker

    def _earlier_tracker_id(self) -> str | None:
        attempts = self.run.record["attempts"]
        return attempts[-1].get("wandb_id") if self.resumed and attempts else None

    def _save(self, models: Models) -> None:
        """The trained model, in student/ or teacher/; an earlier one of a resumed run makes room when it is whole."""
        folder = self.run.path / self.config.role
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():
            folder.rename(old)
        save_model(models.student, models.tokenizer, folder)
        shutil.rmtree(old, ignore_errors=True)

    # -- the optimisation ---------------------------------------------------------------------------------------------

    def _optimise(
        self, models: Models, loss: Any, *, rows: EncodedSet, valid: EncodedSet, tracker: Tracker, device: str
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        from kdrun.training.batches import total_steps
        from kdrun.training.loop import Loop, LoopSettings
        from kdrun.training.objective import LiveTeacher, StudentObjective
        from kdrun.training.optimizer import learning_rate, make_optimizer

        settings, tokenizer = self.config.train, models.tokenizer
        AcceleratorState._reset_state(reset_partial_state=True)  # a sweep's cells share a process, not a precision
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no" if settings.precision == "fp32" else "bf16")
        models.student.to(accelerator.device).train()
        if settings.gradient_checkpointing:
            models.student.gradient_checkpointing_enable()
        if models.teacher is not None:
            models.teacher.to(accelerator.device)
        mix = self.config.loss.model_dump(include={"kd_ratio", "temperature", "temperature_squared"})
        objective = StudentObjective(models.student, loss, rows=models.rows, chunk_tokens=settings.chunk_tokens, **mix)
        optimizer = make_optimizer(
            models.student, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
        num_steps = total_steps(len(rows), settings.batch_size, epochs=settings.epochs, max_steps=settings.max_steps)
        loop = Loop(
            objective, optimizer, rows,
            LoopSettings(
                num_steps=num_steps, batch_size=settings.batch_size, micro_batch_size=settings.micro_batch_size,
                seed=self.config.seed, clip_norm=settings.clip_norm, log_every=settings.log_every,
                learning_rate=lambda step: learning_rate(
                    step, num_steps=num_steps, lr=settings.lr, lr_min=settings.lr_min, schedule=settings.schedule,
                    warmup_steps=settings.warmup_steps),
            ),
            accelerator=accelerator,
            teacher=LiveTeacher(models.teacher, rows=models.rows) if loss.needs_teacher else None,
            pad_id=tokenizer.pad_token_id,
        )  # fmt: skip
        start = self._restore(optimizer, loss)
        file = MetricsFile(self.run.path / "metrics.jsonl")
        begun = time.monotonic()

        def report(step: int, values: dict[str, float], part: str = "train") -> None:
            values = {f"{part}/{name}": value for name, value in values.items()}
            file.write(step=step, time_s=round(time.monotonic() - begun, 3), **values)
            tracker.log(values, step=step)
            self.metrics |= values

        def validate(step: int) -> None:
            report(step, self._validate(models, valid), part="valid")

        def on_step(step: int, values: dict[str, float] | None) -> None:
            bar()
            if values is not None:
                values |= {"epoch": step * settings.batch_size / len(rows), "peak_memory_gib": peak_memory_gib(device)}
                report(step, values)
                bar.show(_beside(values))
            if settings.save_every and (step % settings.save_every == 0 or step == num_steps):
                save_checkpoint(
                    self.checkpoints, step, model=models.student, tokenizer=tokenizer, optimizer=optimizer,
                    state={"loss": loss.state_dict()}, keep=settings.keep_checkpoints,
                )  # fmt: skip
            if settings.valid_every and step % settings.valid_every == 0 and step < num_steps:
                validate(step)

        try:
            if start == 0:
                validate(0)
            with progress(self.config.name, num_steps, done=start) as bar:
                loop.run(start_step=start, on_step=on_step)
            validate(num_steps)
        finally:
            file.close()
        models.student.eval()
        self.metrics |= {"steps": num_steps, "loop_s": round(time.monotonic() - begun, 2)}

    def _restore(self, optimizer: Any, loss: Any) -> int:
        """Go on from the newest checkpoint of a resumed run; returns the steps done."""
        if self.config.resume:
            drop_lines_after(self.run.path / "metrics.jsonl", self.resumed.step if self.resumed else -1)
        if self.resumed is None:
            return 0
        state = self.resumed.restore(optimizer)
        loss.load_state_dict(state["loss"])
        log.info("resumed after step %d", self.resumed.step)
        return self.resumed.step

    def _validate(self, models: Models, valid: EncodedSet) -> dict[str, float]:
        from kdrun.evaluation.agreement import agreement

        return agreement(
            models.student, models.teacher, valid, pad_id=models.tokenizer.pad_token_id, rows=models.rows,
            batch_size=self.config.train.micro_batch_size or self.config.train.batch_size,
        ).means  # fmt: skip


def _beside(values: dict[str, float]) -> str:
    return "  ".join(f"{label} {values[name]:.3f}" for name, label in SHOWN.items() if name in values)


def peak_memory_gib(device: str) -> float:
    """Highest memory so far in GiB: of the GPU's allocator, or of this process on a CPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)

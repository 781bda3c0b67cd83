"""kdrun train: one distillation or one fine-tuning, from a typed config to a finished run directory."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kdrun.commands.assembly import (
    Models,
    RunSets,
    choose_device,
    chosen_loss,
    cpu_threads,
    load_data,
    relative,
    run_models,
    run_sets,
    save_trained,
)
from kdrun.commands.doctor import check_start
from kdrun.commands.launching import make_accelerator, place, teacher_sharding
from kdrun.commands.preconditions import check_material
from kdrun.commands.random_init import random_mark
from kdrun.commands.rollouts import build_rollout, with_teacher_text
from kdrun.commands.scoring import check_room, evaluate_model
from kdrun.commands.teachers import (
    Caches,
    RunTeacher,
    check_context,
    live_teacher,
    load_live,
    preflight,
    run_live,
)
from kdrun.config import CachedTeacher, TrainConfig
from kdrun.data.encoding import EncodedSet
from kdrun.data.unicode_names import unidata_version
from kdrun.models.loading import quiet_libraries
from kdrun.runs.directory import MetricsFile, RunDirectory, drop_lines_after, write_json
from kdrun.runs.folders import remove_leftovers, replace_folder
from kdrun.runs.progress import progress
from kdrun.runs.ranks import from_rank_zero, num_ranks, rank
from kdrun.runs.signals import HeldSignals, SharedSignals
from kdrun.runs.sweep import objective
from kdrun.runs.tracker import Tracker
from kdrun.training.checkpoints import Checkpoint, newest_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from kdrun.training.loop import Loop

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
        extra={"name": config.name, "group": group, **random_mark(config.pair)},
    )
    with run.recorded(), cpu_threads(config.train.threads):
        return Training(config, run, group=group).run_all()


def _without_resume(overrides: Sequence[str]) -> list[str]:
    """The words that start the same run again: what only resuming adds is left out."""
    return [word for word in overrides if word.split("=")[0].lstrip("+") not in ("resume", "hydra.run.dir")]


class Training:
    """The parts of one run and the order in which they work."""

    def __init__(self, config: TrainConfig, run: RunDirectory, *, group: str | None) -> None:
        self.config, self.run, self.group = config, run, group
        self.checkpoints = run.path / "checkpoints"
        self.attempts: list[dict[str, Any]] = run.record["attempts"]
        self.run_id, self.resumed = from_rank_zero(self._look_back)
        self.metrics: dict[str, Any] = {}
        self.validated: dict[int, float] = {}  # steps -> the student's NLL

    def _look_back(self) -> tuple[str, Checkpoint | None]:
        """The run's id, and the checkpoint that it goes on from."""
        run_id = next((earlier["run_id"] for earlier in self.attempts if "run_id" in earlier), uuid4().hex)
        self.run.note(run_id=run_id)
        remove_leftovers(self.run.path)
        return run_id, newest_checkpoint(self.checkpoints, run=run_id)

    def run_all(self) -> float:
        """Load, check, train, save, validate, evaluate; the run directory holds everything at the end."""
        import torch

        config, started = self.config, time.monotonic()
        quiet_libraries()
        device = choose_device(config.train.device)
        torch.manual_seed(config.seed)
        splits = load_data(config.data)
        loss = chosen_loss(config.loss)
        resumed = self.resumed.student if self.resumed else None
        models, loaded = run_models(config, splits, device=device, resumed=resumed)
        check_context(models.student, config.data.max_tokens, role="student")
        sets = run_sets(config, splits, models.tokenizer, needs_teacher=loss.needs_teacher)
        prompts = sets.train
        sets, text = with_teacher_text(config, models, sets, device=device, reader=self.run.path)
        rows, valid = sets.train, sets.valid
        check_room(models.student, sets.evaluated, config.eval)
        head = preflight(models.student, prompts, pad_id=models.tokenizer.pad_token_id, name="student")
        accelerator = make_accelerator(config, device)
        teacher = self._teacher(models, sets, device=accelerator.device)
        self._note(loaded, teacher, rows, valid, text)
        # A cache of text that the teacher wrote knows nothing of the data's rows, which the canaries look at.
        other_rows = bool(text) and isinstance(config.teacher, CachedTeacher)
        taught = teacher.sets.get("train") if loss.needs_teacher and not other_rows else None
        canaries = check_start(config, models, loss, prompts, splits, teacher=taught, accelerator=accelerator)
        self.run.note(canaries={"head": head, **canaries})
        tracker = self._tracker()
        try:
            self._optimise(models, teacher, loss, rows=rows, valid=valid, tracker=tracker, accelerator=accelerator)
            self.metrics["train_s"] = round(time.monotonic() - started, 2)
            if rank():
                return float("nan")  # the rest is rank 0's
            if config.evaluate:
                summary = evaluate_model(
                    models, sets.evaluated, config.data, config.eval, device=device, tracker=tracker,
                    directory=self.run.path / "eval" / config.eval.name,
                    teachers=self._evaluating_teacher(models, teacher, sets, device).sets,
                )  # fmt: skip
                self.metrics |= {f"eval/{name}": value for name, value in summary.items()}
        except BaseException:
            tracker.finish(self.metrics, failed=True)
            raise
        write_json(self.run.path / "summary.json", self.metrics)
        tracker.finish(self.metrics)
        log.info("done: %s", relative(self.run.path))
        found = objective(self.metrics)
        return found[1] if found else float("nan")

    # -- parts --------------------------------------------------------------------------------------------------------

    def _teacher(self, models: Models, sets: RunSets, *, device: Any) -> RunTeacher:
        """The teacher of every set that asks one: loaded, or its caches opened (and made when they are missing)."""
        config = self.config
        if not sets.asked:
            return RunTeacher()
        if isinstance(config.teacher, CachedTeacher):
            caches = Caches(config.teacher, config.pair, config.data, models, sets.asked)
            caches.ensure(device=device)
            return caches.open(device=device, reader=self.run.path)
        if not {"train", "valid"} & sets.asked.keys():
            return RunTeacher()  # for the evaluation alone: loaded when the training's memory is free again
        reference = config.pair.teacher
        found = live_teacher(
            reference, models, sets.train, pair=config.pair, device=device, max_tokens=config.data.max_tokens,
            place=teacher_sharding(config, device),
        )  # fmt: skip
        return run_live(*found, reference, sets=sets.asked)

    def _evaluating_teacher(self, models: Models, teacher: RunTeacher, sets: RunSets, device: str) -> RunTeacher:
        wanted = {name: rows for name, rows in sets.asked.items() if name in sets.evaluated}
        alone = teacher_sharding(self.config, device) is None or isinstance(self.config.teacher, CachedTeacher)
        if not wanted or (alone and wanted.keys() <= teacher.sets.keys()):
            return teacher
        return load_live(self.config.pair.teacher, models, wanted, pair=self.config.pair, device=device)

    def _note(
        self, loaded: dict[str, Any], teacher: RunTeacher, rows: EncodedSet, valid: EncodedSet, text: dict[str, Any]
    ) -> None:
        """What was really loaded, into run.json."""
        facts: dict[str, Any] = {
            **({"rollout": text} if text else {}),
            "data": {
                "rows": len(rows),
                "dropped": rows.num_dropped,
                "scored_tokens": rows.num_scored_tokens,
                "sha256": rows.fingerprint(),
                "unicode": unidata_version(),
                "valid_rows": len(valid),
                "valid_sha256": valid.fingerprint(),
            },
            **loaded,
        }
        if teacher.sets:
            facts["teacher"] = teacher.facts
            facts["shared_vocabulary"] = teacher.rows
        if self.resumed:
            facts["resumed_from_step"] = self.resumed.step
            check_material(self.run, facts)
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
            tags=[config.loss.name, config.rollout.name, config.data.name, config.pair.name],
            config=config.model_dump(mode="json"),
            run_id=self._earlier_tracker_id(),
        )
        self.run.note(wandb_id=tracker.run_id)
        return tracker

    def _earlier_tracker_id(self) -> str | None:
        found = (attempt["wandb_id"] for attempt in reversed(self.attempts) if attempt.get("wandb_id"))
        return next(found, None) if self.resumed else None

    def _save(self, models: Models) -> None:
        """The trained model, in student/ or teacher/; an earlier one of a resumed run goes when it is whole."""
        if rank():
            return
        folder = self.run.path / self.config.role
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        save_trained(models, self.config, aside)
        replace_folder(aside, folder)

    # -- the optimisation ---------------------------------------------------------------------------------------------

    def _optimise(
        self,
        models: Models,
        teacher: RunTeacher,
        loss: Any,
        *,
        rows: EncodedSet,
        valid: EncodedSet,
        tracker: Tracker,
        accelerator: Any,
    ) -> None:
        """Train and save the student. Ctrl-C and SIGTERM wait for the end of a step and leave a checkpoint."""
        import torch

        from kdrun.training.batches import total_steps
        from kdrun.training.compile import Compiled
        from kdrun.training.loop import Loop, LoopSettings
        from kdrun.training.memory import peak_memory_gib, recompute_activations
        from kdrun.training.objective import StudentObjective
        from kdrun.training.optimizer import learning_rate, make_optimizer

        settings, tokenizer = self.config.train, models.tokenizer
        # Dropout must not depend on how the teacher came to be, and no two ranks drop alike.
        torch.manual_seed(self.config.seed + (rank() << 32))
        models.student.train()
        if settings.gradient_checkpointing:
            recompute_activations(models.student)
        num_steps = total_steps(len(rows), settings.batch_size, epochs=settings.epochs, max_steps=settings.max_steps)
        rollout = build_rollout(self.config, models, rows, teacher, num_steps=num_steps, accelerator=accelerator)
        mix = self.config.loss.model_dump(include={"kd_ratio", "temperature", "temperature_squared"})
        compiled = Compiled() if settings.compile else None
        objective = StudentObjective(
            models.student, loss, rows=teacher.rows, chunk_tokens=settings.chunk_tokens,
            teacher_share=rollout.teacher_share, compiled=compiled, **mix,
        )  # fmt: skip
        placement = place(
            self.config, objective,
            lambda: make_optimizer(models.student, lr=settings.lr, betas=settings.betas, eps=settings.eps,
                                   weight_decay=settings.weight_decay),
            accelerator,
        )  # fmt: skip
        loop = Loop(
            placement, rows,
            LoopSettings(
                num_steps=num_steps, batch_size=settings.batch_size, micro_batch_size=settings.micro_batch_size,
                seed=self.config.seed, clip_norm=settings.clip_norm, log_every=settings.log_every,
                learning_rate=lambda step: learning_rate(
                    step, num_steps=num_steps, lr=settings.lr, lr_min=settings.lr_min, schedule=settings.schedule,
                    warmup_steps=settings.warmup_steps),
            ),
            teacher=teacher.sets.get("train") if loss.needs_teacher else None,
            pad_id=tokenizer.pad_token_id,
            rollout=rollout,
        )  # fmt: skip
        start, earlier_s = self._restore(loop)
        file = MetricsFile(self.run.path / "metrics.jsonl")
        begun, saved = time.monotonic() - earlier_s, start
        held = SharedSignals() if num_ranks() > 1 else HeldSignals()

        def report(step: int, values: dict[str, float], part: str = "train") -> None:
            values = {f"{part}/{name}": value for name, value in values.items()}
            file.write(step=step, time_s=round(time.monotonic() - begun, 3), **values)
            tracker.log(values, step=step)
            self.metrics |= values

        def validate(step: int) -> None:
            due = step in (0, num_steps) or (settings.valid_every and step % settings.valid_every == 0)
            if due and step not in self.validated:
                size = loop.micro_batch_size or settings.batch_size
                means = placement.with_student(lambda: self._validate(models, teacher, valid, batch_size=size))
                report(step, means, part="valid")
                self.validated[step] = means["nll"]
                rollout.validated(means["nll"])

        def save(step: int) -> None:
            nonlocal saved
            file.sync()
            student = placement.student()
            state = {
                "loss": loss.state_dict(), "loop": loop.state_dict(), "time_s": time.monotonic() - begun,
                "validated": step in self.validated,
            }  # fmt: skip
            save_checkpoint(
                self.checkpoints, step, run=self.run_id, model=models.adapter or student, tokenizer=tokenizer,
                placement=placement, state=state, keep=settings.keep_checkpoints,
            )  # fmt: skip
            saved = step

        def on_step(step: int, values: dict[str, float] | None) -> None:
            bar()
            if step == start + 1 and loop.micro_batch_size != settings.micro_batch_size:
                self.run.note(micro_batch_size=loop.micro_batch_size)  # memory did not suffice for what was asked
            if values is not None:
                values |= {
                    "epoch": step * settings.batch_size / len(rows),
                    "peak_memory_gib": peak_memory_gib(str(accelerator.device)),
                } | ({"recompilations": compiled.recompilations} if compiled else {})
                report(step, values)
                bar.show(_beside(values))
            if settings.save_every and (step % settings.save_every == 0 or step == num_steps):
                save(step)

        try:
            validate(start)
            with progress(self.config.name, num_steps, done=start) as bar:
                loop.run(start_step=start, on_step=on_step, between=validate, held=held)
            with held:
                models.student = placement.student()
                self._save(models)
        except (KeyboardInterrupt, SystemExit):
            if loop.steps_done > saved and not held.broken:
                save(loop.steps_done)
            if rank():
                self.run.await_end()
            elif saved:
                log.info("stopped; kdrun train resume=%s goes on after step %d", relative(self.run.path), saved)
            raise
        finally:
            file.close()
            held.close()
        if models.student is not None:
            if models.student is not objective.student:  # rank 0's copy, on the CPU
                models.student.to(accelerator.device)
            models.student.eval()
        self.metrics |= {"steps": num_steps, "loop_s": round(time.monotonic() - begun, 2)}

    def _restore(self, loop: Loop) -> tuple[int, float]:
        """Go on from the checkpoint of a resumed run; returns the steps done and the seconds that they took."""
        step = self.resumed.step if self.resumed else 0
        if self.config.resume:  # of step 0, the lines are made again when there is no checkpoint
            for line in from_rank_zero(lambda: drop_lines_after(self.run.path / "metrics.jsonl", step or -1)):
                values = {name: value for name, value in line.items() if "/" in name}
                self.metrics |= values
                self.validated |= {line["step"]: line["valid/nll"]} if "valid/nll" in line else {}
        if self.resumed is None:
            return 0, 0.0
        state = self.resumed.restore(loop.placement)
        loop.loss.load_state_dict(state["loss"])
        loop.load_state_dict(state["loop"])
        if step in self.validated and not state["validated"]:
            loop.rollout.validated(self.validated[step])
        log.info("resumed after step %d", step)
        return step, state["time_s"]

    def _validate(self, models: Models, teacher: RunTeacher, valid: EncodedSet, *, batch_size: int) -> dict[str, float]:
        from kdrun.evaluation.agreement import agreement

        return agreement(
            models.student, teacher.sets.get("valid"), valid, pad_id=models.tokenizer.pad_token_id, rows=teacher.rows,
            batch_size=batch_size,
        ).means  # fmt: skip


def _beside(values: dict[str, float]) -> str:
    return "  ".join(f"{label} {values[name]:.3f}" for name, label in SHOWN.items() if name in values)

"""The teacher of a run: a model loaded now, or the caches of the run's sets, made when they are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from kdrun.commands.assembly import Models, describe, load_teacher
from kdrun.config import CachedTeacher as CachedConfig
from kdrun.config import Data, Pair
from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError
from kdrun.models.loading import load_model, load_tokenizer, local_folder, model_sizes
from kdrun.models.vocabulary import shared_rows
from kdrun.runs.directory import claim
from kdrun.runs.progress import progress
from kdrun.teachers.hashing import file_sha256, tokenizer_sha256, weights_sha256
from kdrun.teachers.listing import record_use, spell_bytes
from kdrun.teachers.live import LiveTeacher, Teacher
from kdrun.teachers.manifest import (
    MANIFEST,
    TeacherIdentity,
    differences,
    identity_fields,
    read_manifest,
    refusal,
    set_name,
)
from kdrun.teachers.topk import TopkTeacher, bytes_per_token, describe_truncation, topk_record, truncation_error

log = logging.getLogger(__name__)
AnyTeacher = Teacher | TopkTeacher
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass
class RunTeacher:
    """The teacher of a run for each of its sets (train, valid, eval...), and what run.json says of it."""

    sets: Mapping[str, AnyTeacher] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int | None:
        """Vocabulary rows shared with the student; None without a teacher."""
        return shared_rows_of(next(iter(self.sets.values()), None))


def shared_rows_of(teacher: AnyTeacher | None) -> int | None:
    """Vocabulary rows that a run's teacher shares with the student; None without a teacher."""
    if teacher is None:
        return None
    return teacher.rows if isinstance(teacher, TopkTeacher) else len(teacher.head.weight_VD)


def live_teacher(
    reference: str,
    models: Models,
    rows: EncodedSet,
    *,
    pair: Pair | None,
    device: Any,
    max_tokens: int | None = None,
    key: str = "pair.teacher",
    place: Callable[[Any], object] | None = None,
) -> tuple[LiveTeacher, int]:
    """The teacher's model on a device with its whole head, looked over; and the rows it shares with the student.

    Args:
        rows: some rows that both models can read, for the look at the head.
        max_tokens: longest row that the teacher will be given; None does not check.
        place: brings the model to the device in another way than whole.

    Raises:
        UserError: when it is another vocabulary's, has fewer positions or a head that is not supported.
    """
    model, shared = load_teacher(
        reference, models.tokenizer, models.student, dtype=teacher_dtype(pair),
        trust_remote_code=bool(getattr(pair, "trust_remote_code", False)), key=key,
        bits=getattr(pair, "teacher_bits", None),
    )  # fmt: skip
    if max_tokens is not None:
        check_context(model, max_tokens, role="teacher")
    model.to(device) if place is None else place(model)
    preflight(model, rows, pad_id=models.tokenizer.pad_token_id, name="teacher")
    return LiveTeacher(model, rows=None), shared


def run_live(teacher: LiveTeacher, shared: int, reference: str, *, sets: Iterable[str]) -> RunTeacher:
    """A live teacher for the named sets, its head cut to the shared rows."""
    cut = LiveTeacher(teacher.model, rows=shared)
    facts = {"reference": reference, "source": "live", **describe(teacher.model)}
    return RunTeacher(dict.fromkeys(sets, cut), facts)


def load_live(
    reference: str, models: Models, sets: Mapping[str, EncodedSet], *, pair: Pair | None, device: str
) -> RunTeacher:
    """A teacher's model, loaded for an evaluation of these sets alone."""
    found = live_teacher(reference, models, next(iter(sets.values())), pair=pair, device=device)
    return run_live(*found, reference, sets=sets)


def teacher_dtype(pair: Pair | None) -> str:
    """fp32, bf16 or fp16: how the pair's teacher is loaded."""
    return str(getattr(pair, "teacher_dtype", "fp32"))


def teacher_form(pair: Pair | None) -> str:
    """What the teacher's weights became when it was loaded: its dtype, and the bits of its matrices if fewer."""
    bits = getattr(pair, "teacher_bits", None)
    return teacher_dtype(pair) + (f"-{bits}bit" if bits else "")


def check_context(model: Any, max_tokens: int, *, role: str) -> None:
    """The model has a position for every token of the longest row.

    Raises:
        UserError: when it has not.
    """
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if limit is not None and max_tokens > limit:
        raise UserError(f"data.max_tokens={max_tokens}: the {role} has {limit} positions; lower it")


def shared_with(pair: Pair, models: Models) -> tuple[int, int, int]:
    """Hidden width and vocabulary rows of a pair's teacher, and the rows that it shares with the student; no weights
    are read.

    Raises:
        UserError: when the teacher speaks another vocabulary.
    """
    remote = bool(getattr(pair, "trust_remote_code", False))
    tokenizer = load_tokenizer(pair.teacher, key="pair.teacher", trust_remote_code=remote)
    width, vocabulary = model_sizes(pair.teacher, key="pair.teacher", trust_remote_code=remote)
    student_rows = models.student.get_output_embeddings().weight.shape[0]
    shared = shared_rows(tokenizer, models.tokenizer, teacher_rows=vocabulary, student_rows=student_rows)
    return width, vocabulary, shared


def found_weights(pair: Pair, *, memory: Path, otherwise: str) -> str:
    """sha256 of the weights of a pair's teacher, which are fetched from the hub when they are not here.

    Raises:
        UserError: that there are none, so `otherwise`.
    """
    folder = local_folder(pair.teacher, key="pair.teacher")
    weights = weights_sha256(folder, memory=memory)
    if weights is None and not Path(pair.teacher).exists():
        load_model(pair.teacher, key="pair.teacher", trust_remote_code=bool(getattr(pair, "trust_remote_code", False)))
        weights = weights_sha256(folder, memory=memory)
    if weights is None:
        raise UserError(f"pair.teacher={pair.teacher}: no weights there, so {otherwise}")
    return weights


def free_memory() -> None:
    """Gives the memory of a model that is no longer used back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def preflight(model: Any, rows: EncodedSet, *, pad_id: int, name: str) -> float:
    """Largest difference of head(hidden) from the model's own logits on a few rows, relative to their spread."""
    from kdrun.data.scored import collate
    from kdrun.models.heads import check_head

    ids, _ = collate([rows.row(i) for i in range(min(2, len(rows)))], pad_id)
    return check_head(model, ids.to(next(model.parameters()).device), name=name)


class Caches:
    """The caches of one run's sets: which they are, whether they are there, made, opened."""

    def __init__(
        self,
        source: CachedConfig,
        pair: Pair,
        data: Data,
        models: Models,
        sets: Mapping[str, EncodedSet],
        *,
        say: Callable[[str], None] = log.info,
    ) -> None:
        """
        Raises:
            UserError: when the teacher speaks another vocabulary, or nothing says which weights it has.
        """
        self.source, self.pair, self.data, self.models, self.sets, self.say = source, pair, data, models, sets, say
        self.width, self.vocabulary, self.shared = shared_with(pair, models)
        if source.topk is not None and source.topk > self.shared:
            raise UserError(f"teacher.topk={source.topk}: must be at most {self.shared}, the entries of the vocabulary")
        self.identity = self._identity()
        self.group = Path(source.path or Path(source.directory) / self.identity.folder_name(pair.teacher, data.name))
        self.wanted = {name: identity_fields(self.identity, rows) for name, rows in sets.items()}
        self.folders = {name: self.group / set_name(name, wanted) for name, wanted in self.wanted.items()}
        self.made: set[str] = set()

    def _identity(self) -> TeacherIdentity:
        folder = local_folder(self.pair.teacher, key="pair.teacher")
        if self.source.path is None:
            weights: str | None = found_weights(
                self.pair, memory=Path(self.source.directory) / "hashes.json",
                otherwise="nothing says which cache is its own; name one: teacher.path=DIR",
            )  # fmt: skip
        elif (weights := weights_sha256(folder)) is None:
            self.say(f"teacher cache: no weights at {self.pair.teacher}, so their hash is not compared")
        return TeacherIdentity(
            config_sha256=file_sha256(folder / "config.json"),
            weights_sha256=weights,
            tokenizer_sha256=tokenizer_sha256(self.models.tokenizer),  # the teacher's means the same by each id
            dtype=teacher_form(self.pair),
            topk=self.source.topk,
            vocabulary=None if self.source.topk is None else self.shared,
            template=self.data.template,
            max_prompt_tokens=self.data.max_prompt_tokens,
            max_tokens=self.data.max_tokens,
            overlong=self.data.overlong,
            # a build's label (+cpu, +cu130) is not compared: the cache of a GPU machine is read on any other
            torch=metadata.version("torch").partition("+")[0],
            transformers=metadata.version("transformers"),
        )

    # -- making what is missing ---------------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """Names of the sets that have no cache yet."""
        return [name for name, folder in self.folders.items() if not folder.exists()]

    def ensure(self, *, device: Any) -> None:
        """Make the caches that are missing, with one load of the teacher; of several processes one does.

        Raises:
            UserError: when teacher.path has not what this run wants, or the disk is too small.
        """
        if not self.missing():
            return
        if self.source.path is not None:
            raise UserError(self._not_at_path(self.missing()[0]))
        with claim(self.group, waiting=lambda: self.say(f"teacher cache: waiting, another process makes {self.group}")):
            if missing := self.missing():
                self._say_why(missing[0])
                self._make(missing, device=device)

    def _say_why(self, name: str) -> None:
        """Which cache of this teacher is nearest, and in what it differs: a pass that was not expected has a reason."""
        near: list[list[str]] = []
        for path in Path(self.source.directory).glob(f"*/{name}-*/{MANIFEST}"):
            try:
                content = read_manifest(path.parent)
            except UserError:
                continue  # another's damage is not this run's business; `kdrun cache ls` shows it
            if (content.get("teacher"), content.get("data")) == (self.pair.teacher, self.data.name):
                near.append(differences(content["identity"], self.wanted[name]))
        if near:
            fields = ", ".join(sorted(near, key=len)[0])
            self.say(f"teacher cache: none of this run's {name} rows yet; the nearest there differs in {fields}")

    def _not_at_path(self, name: str) -> str:
        """Why teacher.path has no cache of a set: the nearest that it has, and where that differs."""
        key = f"teacher.path={self.source.path}"
        found = [(folder, read_manifest(folder)) for folder in sorted(self.group.glob(f"{name}-*")) if
                 (folder / MANIFEST).exists()]  # fmt: skip
        if not found:
            return (
                f"{key}: has no whole cache named {name}-*; build it with `kdrun cache` and this run's words "
                "(without teacher.path), and name the folder that it prints"
            )
        wanted = self.wanted[name]
        folder, content = min(found, key=lambda pair: len(differences(pair[1]["identity"], wanted)))
        return refusal(folder, content, wanted, differences(content["identity"], wanted), key=key)

    def _make(self, names: list[str], *, device: Any) -> None:
        import torch

        from kdrun.teachers.building import build, check_disk, estimate_bytes
        from kdrun.teachers.cached import HEAD, save_head

        rows = [self.sets[name] for name in names]
        element, topk = ELEMENT_BYTES[teacher_dtype(self.pair)], self.identity.topk
        row_bytes = self.width * element if topk is None else bytes_per_token(topk, self.shared)
        no_head = topk is not None or (self.group / HEAD).exists()  # buckets are normalised already
        head_bytes = 0 if no_head else self.vocabulary * self.width * element
        needed = estimate_bytes(rows, row_bytes=row_bytes, head_bytes=head_bytes)
        free = check_disk(self.group, needed, key="teacher.directory")
        tokens = sum(encoded.num_scored_tokens for encoded in rows)
        with_head = " with the head" if head_bytes else ""
        self.say(
            f"teacher cache: one pass of {self.pair.teacher} over {', '.join(names)}: {tokens:,} tokens of "
            f"{spell_bytes(row_bytes)}, {spell_bytes(needed)}{with_head}; {spell_bytes(free)} free"
        )
        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            teacher, _ = live_teacher(
                self.pair.teacher, self.models, rows[0], pair=self.pair, device=device, max_tokens=self.data.max_tokens
            )
            head = save_head(teacher.head, self.group) if topk is None else {}
            for name in names:
                record = self._record(teacher, name, device)
                build(
                    self.folders[name], self.sets[name], record, identity=self.wanted[name],
                    notes={"teacher": self.pair.teacher, "data": self.data.name, "split": name}, head=head,
                    pad_id=self.models.tokenizer.pad_token_id, device=device, progress=progress,
                )  # fmt: skip
                self.made.add(name)
        del teacher
        free_memory()

    def _record(self, teacher: LiveTeacher, name: str, device: Any) -> Any:
        """What is stored of a token; for a lossy cache with its truncation error, which is said, too."""
        from kdrun.teachers.building import hidden_record

        if (topk := self.identity.topk) is not None:
            cut = LiveTeacher(teacher.model, rows=self.shared)
            error = truncation_error(
                cut,
                self.models.student,
                self.sets[name],
                topk,
                pad_id=self.models.tokenizer.pad_token_id,
                device=device,
            )
            self.say(f"{name}: {describe_truncation(topk, error)}")
            return replace(topk_record(cut, topk), facts={"truncation": error})
        weight = teacher.head.weight_VD
        return hidden_record(teacher.hidden, width=weight.shape[1], dtype=weight.dtype)

    # -- reading ------------------------------------------------------------------------------------------------------

    def open(self, *, device: Any, reader: Path | None) -> RunTeacher:
        """The teacher of each set, from its cache; every checksum is looked at.

        Args:
            reader: the run that reads, noted beside the caches; None notes nothing.

        Raises:
            UserError: naming the field or the file.
        """
        from kdrun.teachers.cached import CachedTeacher, open_cache, read_head

        key = f"teacher.path={self.source.path}" if self.source.path else "teacher=cached"
        opened = {name: open_cache(self.folders[name], self.wanted[name], key=key) for name in self.sets}
        teachers: dict[str, AnyTeacher]
        if self.identity.topk is not None:
            teachers = {name: TopkTeacher(shards) for name, shards in opened.items()}
        else:
            head = read_head(self.group, device=device, rows=self.shared)
            teachers = {name: CachedTeacher(shards, head) for name, shards in opened.items()}
        facts = {
            "reference": self.pair.teacher, "source": "cached", "path": str(self.group),
            "weights_sha256": self.identity.weights_sha256,
            "sets": {
                name: {
                    "path": str(self.folders[name]), "manifest_sha256": shards.manifest["sha256"],
                    "tokens": shards.num_tokens, "bytes": shards.num_bytes, "made_here": name in self.made,
                    **{key: shards.manifest[key] for key in ("truncation",) if key in shards.manifest},
                }
                for name, shards in opened.items()
            },
        }  # fmt: skip
        for folder in self.folders.values() if reader is not None else ():
            record_use(folder, str(reader))
        return RunTeacher(teachers, facts)

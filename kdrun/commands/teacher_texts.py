"""The teacher's text of a run (SeqKD): found where an earlier run left it, or written now by teacher or server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdrun.commands.assembly import Models
from kdrun.commands.teachers import found_weights, free_memory, live_teacher, shared_with, teacher_form
from kdrun.config import TrainConfig
from kdrun.config.rollouts import Drawn, TeacherText
from kdrun.data.encoding import EncodedSet
from kdrun.models.loading import local_folder
from kdrun.runs.directory import claim
from kdrun.runs.progress import progress
from kdrun.teachers.hashing import file_sha256, text_sha256, tokenizer_sha256
from kdrun.teachers.listing import record_use
from kdrun.teachers.manifest import canonical, short_name

if TYPE_CHECKING:
    from kdrun.generation.sampling import Sampling

log = logging.getLogger(__name__)
STREAM = 1 << 32  # in the seed of the teacher's text: no step of a training, whose texts are the student's, has it


def drawn_by(section: Drawn, max_tokens: int) -> Sampling:
    """How a rollout draws text to rows of at most `max_tokens`, prompt included."""
    from kdrun.generation.sampling import Sampling

    most = section.max_new_tokens or max_tokens
    return Sampling(most, temperature=section.temperature, top_k=section.top_k, top_p=section.top_p)


def teacher_texts(
    config: TrainConfig,
    models: Models,
    rows: EncodedSet,
    *,
    device: Any,
    reader: Path | None = None,
    say: Callable[[str], None] = log.info,
) -> tuple[EncodedSet, dict[str, Any]]:
    """The prompts of `rows`, each with rollout.samples texts of the teacher (all of one prompt, then of the next), and
    what run.json says of them. Texts that are not there yet are written first, by one of several processes.

    Args:
        reader: the run that reads them, noted beside the texts; None notes nothing.

    Raises:
        UserError: when the teacher is of another vocabulary, the server does not write, or what lies there is damaged.
    """
    texts = TeacherTexts(config, models, rows, say=say)
    texts.ensure(device=device)
    return texts.open(reader=reader)


class TeacherTexts:
    """The texts of one run: which they are, whether they are there, written, opened."""

    def __init__(
        self, config: TrainConfig, models: Models, rows: EncodedSet, *, say: Callable[[str], None] = log.info
    ) -> None:
        """
        Raises:
            UserError: when the teacher speaks another vocabulary, or nothing says which weights it has.
        """
        from kdrun.generation.answers import answer_limits

        assert isinstance(config.rollout, TeacherText)
        self.config, self.section, self.models, self.rows, self.say = config, config.rollout, models, rows, say
        section, max_tokens = self.section, config.data.max_tokens
        self.sampling = drawn_by(section, max_tokens)
        self.limits = answer_limits(
            rows, range(len(rows)), max_new_tokens=self.sampling.max_new_tokens, max_tokens=max_tokens
        )
        self.identity = self._identity()
        self.writer = section.server_model or config.pair.teacher
        name = f"{short_name(self.writer)}-{config.data.name}-{text_sha256(canonical(self.identity))[:12]}"
        self.folder, self.made = Path(section.directory) / name, False

    def _identity(self) -> dict[str, Any]:
        """All that decides the texts; with another value of any field, they lie in another folder."""
        from kdrun.generation.sampling import resolved_settings
        from kdrun.rollouts.teacher_text import prompts_of

        pair, section, tokenizer = self.config.pair, self.section, self.models.tokenizer
        if section.server is None:
            by = {
                "config_sha256": file_sha256(local_folder(pair.teacher, key="pair.teacher") / "config.json"),
                "weights_sha256": found_weights(
                    pair, memory=Path(section.directory) / "hashes.json",
                    otherwise="it can write nothing, and nothing says which texts are its own; put them there",
                ),
                "dtype": teacher_form(pair), "vocabulary": shared_with(pair, self.models)[2],
                "sampling": resolved_settings(self.sampling),
            }  # fmt: skip
        else:
            by = {
                "server": urlsplit(section.server).netloc, "server_model": section.server_model,
                "vocabulary": len(tokenizer), "sampling": {**asdict(self.sampling), "sampler": "the server's"},
            }  # fmt: skip
        return {
            "kind": "texts", "format": 1, **by, "samples": section.samples, "seed": self.section.seed,
            "prompts_sha256": prompts_of(self.rows).fingerprint(), "tokenizer_sha256": tokenizer_sha256(tokenizer),
            "max_tokens": self.config.data.max_tokens, "torch": metadata.version("torch").partition("+")[0],
            "transformers": metadata.version("transformers"),
        }  # fmt: skip

    def ensure(self, *, device: Any) -> None:
        """Write the texts if they are missing, going on with what a killed attempt left."""
        if self.folder.exists():
            return
        with claim(
            self.folder, waiting=lambda: self.say(f"teacher's text: waiting, another process writes {self.folder}")
        ):
            if not self.folder.exists():
                num_texts = len(self.rows) * self.section.samples
                self.say(
                    f"teacher's text: {self.writer} writes {num_texts:,} texts, {self.section.samples} to each of "
                    f"{len(self.rows):,} prompts, at most {sum(self.limits) * self.section.samples:,} tokens"
                )
                self._write(device=device)
                self.made = True

    def _write(self, *, device: Any) -> None:
        import torch

        from kdrun.rollouts.teacher_text import write_texts

        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            write_texts(
                self.folder, self.rows, self._by_server() if self.section.server else self._by_teacher(device),
                samples=self.section.samples, identity=self.identity, tokenizer=self.models.tokenizer,
                notes={"teacher": self.writer, "data": self.config.data.name}, progress=progress,
            )  # fmt: skip
        free_memory()

    def _by_teacher(self, device: Any) -> Any:
        """Text to sample s of row i from the stream (seed, STREAM, s, i), by the pair's teacher, loaded now."""
        from kdrun.generation.generate import Generation, Mixture, generate

        config, rows, tokenizer = self.config, self.rows, self.models.tokenizer
        teacher, shared = live_teacher(
            config.pair.teacher, self.models, rows, pair=config.pair, device=device, max_tokens=config.data.max_tokens
        )
        alone = Mixture(teacher.model, 1.0, shared)  # nothing of the student: cut to the tokens that it has, too

        def write(block: range, sample: int, advance: Callable[[int, int], None]) -> list[Generation]:
            return generate(
                teacher.model, [rows.prompt(row).tolist() for row in block], self.sampling, mixed_with=alone,
                eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id, batch_size=self.section.batch_size,
                seed=[self.section.seed, STREAM, sample], indices=block, limits=[self.limits[row] for row in block],
                advance=advance,
            )  # fmt: skip

        return write

    def _by_server(self) -> Any:
        """Text by the server, `rollout.batch_size` requests at once."""
        from kdrun.generation.endpoint import Endpoint, read_key
        from kdrun.rollouts.server import KEYS, server_writer

        section = self.section
        assert section.server is not None and section.server_model is not None
        endpoint = Endpoint(
            base_url=section.server, path="completions", model=section.server_model,
            key=read_key(section.key_env, key=KEYS.key), keys=KEYS, timeout_s=600, retries=4,
            concurrency=section.batch_size,
        )  # fmt: skip
        return server_writer(
            endpoint, self.rows, self.models.tokenizer, self.sampling, seed=self.section.seed, limits=self.limits,
            say=self.say,
        )  # fmt: skip

    def open(self, *, reader: Path | None) -> tuple[EncodedSet, dict[str, Any]]:
        """The texts, every checksum looked at, and what run.json says of them."""
        from kdrun.rollouts.teacher_text import read_texts

        texts = read_texts(
            self.folder, self.rows, samples=self.section.samples, identity=self.identity,
            eos_id=self.models.tokenizer.eos_token_id, limits=self.limits,
        )  # fmt: skip
        if reader is not None:
            record_use(self.folder, str(reader))
        return texts, {
            "path": str(self.folder), "sha256": texts.fingerprint(), "texts": len(texts), "made_here": self.made,
            "tokens": texts.num_scored_tokens, "mean_length": texts.num_scored_tokens / len(texts),
            "finished_share": 1 - texts.num_cut_responses / len(texts),
        }  # fmt: skip

"""What a teacher wrote before the training (SeqKD: Kim and Rush, arXiv 1606.07947), kept like a teacher cache.

Written once, block by block, and sealed with checksums:

    outputs/rollouts/TEACHER-DATA-HASH/           the same for every field of the identity
        manifest.json texts-00000.jsonl ...       a line a text: its row, sample, ids without EOS, whether EOS followed
    outputs/rollouts/TEACHER-DATA-HASH.partial/   half-written, to be continued after its last whole file
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.encoding import EncodedSet
from kdrun.generation.answers import answered
from kdrun.generation.generate import Generation, decode
from kdrun.runs.provenance import versions
from kdrun.teachers.manifest import MANIFEST, damaged, read_manifest, seal
from kdrun.teachers.store import PartialFolder, check_files
from kdrun.untrusted import refuse_links_out

BLOCK = 512  # prompts of a file: what a killed writer loses at most
Advance = Callable[[int, int], None]
# (row numbers, number of the sample, called with texts and tokens since its last call) -> a text a row
Write = Callable[[Sequence[int], int, Advance], list[Generation]]


def prompts_of(rows: EncodedSet) -> EncodedSet:
    """The prompts alone: what the texts depend on."""
    return EncodedSet.of_rows([rows.prompt(i) for i in range(len(rows))], rows.prompt_lengths, rows.example_index)


def write_texts(
    folder: Path,
    rows: EncodedSet,
    write: Write,
    *,
    samples: int,
    identity: dict[str, Any],
    notes: dict[str, Any],
    tokenizer: Any,
    progress: Callable[..., AbstractContextManager[Any]],
) -> None:
    """Write `samples` texts to each prompt into `folder`, going on with what a killed attempt left. The caller holds
    the lock.

    Args:
        notes: for people (teacher, data). tokenizer: to show people the text beside the ids.
        progress: called as progress(name, texts, done=texts) for a context that gives a `runs.progress.Task`.
    """
    started, blocks = time.monotonic(), _blocks(len(rows))
    store = PartialFolder(folder, {"identity": identity, "blocks": len(blocks), **notes})
    done = sum(len(block) for name, block in blocks.items() if name in store.files) * samples
    num_tokens = 0
    with progress("teacher's text", len(rows) * samples, done=done) as bar:

        def advance(texts: int, tokens: int) -> None:
            nonlocal num_tokens
            num_tokens += tokens
            bar.show(f"{num_tokens:,} tokens")
            bar(texts)

        for name, block in blocks.items():
            if name not in store.files:
                written = [write(block, sample, advance) for sample in range(samples)]
                store.write(name, "".join(_lines(block, written, tokenizer)).encode())
    texts = (text for name, block in blocks.items() for text in _read(store.folder / name, block, samples))
    num_tokens = sum(len(text.token_ids) + text.finished for text in texts)  # of an earlier attempt, too
    num_bytes = sum(entry["bytes"] for entry in store.files.values())
    made = {
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 3), "resumed_after_texts": done, "argv": list(sys.argv),
        "versions": versions(),
    }  # fmt: skip
    store.seal({
        **notes, "identity": identity, "rows": len(rows) * samples, "tokens": num_tokens, "head": {}, "made": made,
        "row_bytes": num_bytes // max(num_tokens, 1),
    })  # fmt: skip


def read_texts(
    folder: Path, rows: EncodedSet, *, samples: int, identity: dict[str, Any], eos_id: int, limits: Sequence[int]
) -> EncodedSet:
    """The prompts with their texts, all samples of the first, then of the second.

    Args:
        limits: at most so many tokens of a text to each prompt, EOS counted.

    Raises:
        UserError: naming the file that is missing, altered, of other prompts or settings, or a link.
    """
    refuse_links_out(folder, key="rollout.directory")
    manifest, blocks = read_manifest(folder), _blocks(len(rows))
    is_ours = manifest["identity"] == identity and manifest["files"].keys() == blocks.keys()
    if not is_ours or seal(manifest) != manifest:
        raise damaged(folder / MANIFEST, "is not what this run's teacher, prompts and settings wrote", folder)
    check_files(folder, manifest)
    numbers: list[int] = []
    texts: list[Generation] = []
    for name, block in blocks.items():
        try:
            own_numbers, own = np.repeat(block, samples).tolist(), _read(folder / name, block, samples)
            fit = all(len(t.token_ids) + t.finished <= limits[row] for row, t in zip(own_numbers, own, strict=True))
            if not fit or any(not 0 <= token < identity["vocabulary"] for t in own for token in t.token_ids):
                raise ValueError("a text that is too long, or of tokens that the student lacks")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise damaged(folder / name, f"is no file of texts ({' '.join(str(error).split())})", folder) from error
        numbers += own_numbers
        texts += own
    num_cut = sum(not text.finished for text in texts)
    return replace(answered(rows, numbers, texts, eos_id=eos_id), num_cut_responses=num_cut)


def _blocks(num_rows: int) -> dict[str, range]:
    """Name of a file -> its rows."""
    starts = range(0, num_rows, BLOCK)
    return {f"texts-{n:05d}.jsonl": range(start, min(start + BLOCK, num_rows)) for n, start in enumerate(starts)}


def _lines(block: range, written: list[list[Generation]], tokenizer: Any) -> Iterator[str]:
    """`written`: by sample, then by row of the block."""
    spelled = [decode(texts, tokenizer) for texts in written]
    for place, row in enumerate(block):
        for sample, (texts, words) in enumerate(zip(written, spelled, strict=True)):
            text = texts[place]
            content = {"row": row, "sample": sample, "finished": text.finished, "text": words[place]}
            yield json.dumps({**content, "ids": text.token_ids}) + "\n"


def _read(path: Path, block: range, samples: int) -> list[Generation]:
    """The texts of a file, prompt by prompt."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    if [(line["row"], line["sample"]) for line in lines] != [(row, s) for row in block for s in range(samples)]:
        raise ValueError("other rows")
    if not all(type(value) is int for value in chain.from_iterable(line["ids"] for line in lines)):
        raise ValueError("ids that are no numbers")
    return [Generation(line["ids"], line["finished"] is True) for line in lines]

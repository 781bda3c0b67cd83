"""The sets that come from the Hugging Face hub, or from a local folder of the same shape: Dolly and UltraChat."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun.data.examples import Example, Splits, fill_splits
from kdrun.data.jsonl import example_from_row
from kdrun.errors import UserError

DOLLY = "MiniLLM/dolly"
DOLLY_VALID_ROWS = 1000
ULTRACHAT = "HuggingFaceH4/ultrachat_200k"

logger = logging.getLogger(__name__)


def load_dolly(path: str | None = None, *, revision: str | None = None) -> Splits:
    """databricks-dolly-15k as MiniLLM divided it: 1000 validation and 500 test examples, the rest train.

    In MiniLLM's own layout (`raw.jsonl` and `valid.jsonl`) the first 1000 rows of `raw` are validation, as in
    tools/process_data_dolly.py, and `valid` is the test set of the papers. Any other layout is taken by the names of
    its splits. `path` is another hub name or a local folder; a split that is missing is carved from train by hash, and
    the log says so.

    Raises UserError "data.path=..." when the set cannot be had or has another shape.
    """
    source = path or DOLLY
    minillm_files = {"train": "raw.jsonl", "test": "valid.jsonl"}
    is_minillm = (Path(source).expanduser() / "raw.jsonl").is_file() or source == DOLLY
    tables = fetch_tables(source, "dolly", revision, minillm_files if is_minillm else None)
    splits = {
        name: [example_from_row(row, f"{source} {name} row {i}") for i, row in enumerate(table)]
        for name, table in tables.items()
    }
    raw = splits.get("train", [])
    if is_minillm and len(raw) >= 2 * DOLLY_VALID_ROWS:
        splits |= {"train": raw[DOLLY_VALID_ROWS:], "validation": raw[:DOLLY_VALID_ROWS]}
    return complete_splits(splits, source, tuple(tables))


def load_ultrachat(path: str | None = None, *, revision: str | None = None) -> Splits:
    """UltraChat 200k: first user turn -> first assistant turn; `test_sft` is test, validation is carved by hash.

    A dialogue that does not begin so (a leading system turn aside) or whose turn is blank is left out, and the log
    counts them. `path` and errors as for `load_dolly`; a local folder may call its splits train and test.
    """
    source = path or ULTRACHAT
    # By name, or the dialogues meant for other training (train_gen, test_gen) are downloaded too: as much again.
    sft_files = {name: f"data/{name}-*" for name in ("train_sft", "test_sft")}
    tables = fetch_tables(source, "ultrachat", revision, sft_files if source == ULTRACHAT else None)
    splits = {}
    for name in ("train", "validation", "test"):
        table = tables.get(f"{name}_sft", tables.get(name))
        if table is not None:
            splits[name] = _ultrachat_examples(table, f"{source} {name}")
    return complete_splits(splits, source, tuple(tables))


def fetch_tables(
    source: str, name: str, revision: str | None, data_files: Mapping[str, str] | None
) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The splits of a hub set or a local folder, as `datasets` reads them; no code of the set is ever run.

    Raises UserError when it cannot be had.
    """
    import datasets

    folder = Path(source).expanduser()
    is_folder = folder.is_dir()
    if folder.is_file():
        raise UserError(
            f"data.path={source}: is a file; data={name} reads a folder, so type data=jsonl data.path={source}"
        )
    if is_folder and revision is not None:
        raise UserError(
            f"data.revision={revision}: means nothing for the local folder data.path={source}; leave it out"
        )
    if not is_folder and not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source):
        raise UserError(f"data.path={source}: no such folder; type data.path=FOLDER, or leave it out to use the hub")
    try:
        return datasets.load_dataset(
            str(folder) if is_folder else source, data_files=data_files and dict(data_files), revision=revision
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(_refusal(source, revision, "is not on the hub, or is not public", error)) from error
    except ConnectionError as error:
        raise UserError(
            _refusal(source, revision, "the hub cannot be reached", error)
            + "; type data.path=FOLDER with a copy, or data=unicode, which needs no download"
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(_refusal(source, revision, "cannot be read as a data set", error)) from error


def complete_splits(splits: Mapping[str, list[Example]], source: str, found: Sequence[str]) -> Splits:
    """Train, validation and test: those given as they are, those missing carved from train by hash, with a log line."""
    train = splits.get("train", [])
    if not train:
        raise UserError(f"data.path={source}: has no train split with examples (splits found: {', '.join(found)})")
    missing = [name for name in ("validation", "test") if not splits.get(name)]
    if missing:
        logger.info("%s has no %s split: carved from train by a hash of the prompt", source, " and no ".join(missing))
    return fill_splits(train, splits.get("validation") or None, splits.get("test") or None)


def _refusal(source: str, revision: str | None, trouble: str, error: Exception) -> str:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split())[:200]
    at = f" data.revision={revision}" if revision else ""
    return f"data.path={source}{at}: {trouble} ({type(cause).__name__}: {reason})"


def _ultrachat_examples(table: Sequence[Mapping[str, Any]], where: str) -> list[Example]:
    examples = []
    for i, row in enumerate(table):
        turns = row.get("messages")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise UserError(
                f'{where} row {i}: field "messages" must be a list of {{"role": ..., "content": ...}}; data=ultrachat '
                "reads sets of that shape only"
            )
        if (example := first_exchange(turns)) is not None:
            examples.append(example)
    if len(examples) < len(table):
        logger.warning("%s: left out %d dialogues without a first exchange", where, len(table) - len(examples))
    return examples


def first_exchange(turns: Sequence[Mapping[str, Any]]) -> Example | None:
    """The first user turn and the assistant's answer to it; None when the dialogue does not begin with them."""
    spoken = turns[1:] if turns and turns[0].get("role") == "system" else turns
    if [turn.get("role") for turn in spoken[:2]] != ["user", "assistant"]:
        return None
    question, answer = (turn.get("content") for turn in spoken[:2])
    if not (isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip()):
        return None
    return Example(question, "", (answer,))

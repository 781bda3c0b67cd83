"""Evaluation sets of their own: the five that MiniLLM's papers share, or any file of JSON lines. Never trained on.

Gu et al. 2023, MiniLLM, arXiv 2306.08543, published them on the hub as `valid.jsonl`, which is the test set. S-NI and
UnNI are divided there by the length of the reference; the papers use the folder `11_` (11 tokens and more), and of
UnNI the first 10,000 rows.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kdrun.data.examples import Example
from kdrun.data.jsonl import iterate_jsonl
from kdrun.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """Where a published set lies and how many of its rows are used; `folders` are the names that local copies bear."""

    repository: str
    file: str
    num_rows: int
    folders: tuple[str, ...]


SUITES = {
    "dolly": Suite("MiniLLM/dolly", "valid.jsonl", 500, ("dolly",)),
    "self_instruct": Suite(
        "MiniLLM/self-inst", "valid.jsonl", 242, ("self_instruct", "self-instruct", "self-inst", "self_inst")
    ),
    "vicuna": Suite("MiniLLM/Vicuna", "valid.jsonl", 80, ("vicuna", "Vicuna")),
    "sni": Suite("MiniLLM/sinst", "11_/valid.jsonl", 1694, ("sni", "sinst")),
    "unni": Suite("MiniLLM/uinst", "11_/valid.jsonl", 10_000, ("unni", "uinst")),
}


def suite_name(suite: str) -> str:
    """What a suite is called, in results and folders: its name, or the stem of its file.

    A file called valid, test or train takes the name of its folder.
    """
    if not suite.endswith(".jsonl"):
        return suite
    path = Path(suite).expanduser()
    return path.resolve().parent.name if path.stem in ("valid", "test", "train") else path.stem


def load_suite(suite: str, *, directory: str | None = None) -> list[Example]:
    """The examples of a suite, in the order of its file.

    `suite` is a name of SUITES or the path of a file that ends in .jsonl. A named one is read from `directory`
    (NAME/valid.jsonl, NAME/11_/valid.jsonl or NAME.jsonl, NAME being ours or MiniLLM's), or fetched from the hub. A
    copy with another number of rows than the published set is used, with a warning.

    References of S-NI and UnNI are stripped and their duplicates dropped (of S-NI's 1694 rows, 98 have stray spaces at
    the first reference and 7 repeat one): no ROUGE score changes, and an exact match becomes possible.

    Raises UserError when the suite is unknown, missing or not what it should be.
    """
    examples = list(_iterate(suite, find_suite(suite, directory)))
    published = SUITES.get(suite)
    if published and len(examples) != published.num_rows:
        logger.warning(
            "eval.suites: this copy of %s has %d rows, the published set %d: scores do not compare with the papers'",
            suite, len(examples), published.num_rows,
        )  # fmt: skip
    return examples


def check_suites(suites: Sequence[str], directory: str | None = None) -> None:
    """Every line of every suite is checked and none kept, before any model is read; a set on the hub is fetched.

    Raises UserError as `load_suite`, and when two suites would have one name.
    """
    for suite in suites:
        _refuse_unknown(suite)
    for i, suite in enumerate(suites):
        if suite_name(suite) in map(suite_name, suites[:i]):
            raise UserError(
                f"eval.suites=[...,{suite}]: a suite before it is called {suite_name(suite)} too, and their results "
                "would share a folder; rename the file"
            )
        check_suite(suite, directory)


def check_suite(suite: str, directory: str | None = None) -> int:
    """The number of examples of one suite; errors as for `load_suite`."""
    return sum(1 for _ in _iterate(suite, find_suite(suite, directory)))


def find_suite(suite: str, directory: str | None = None) -> Path:
    """The file of a suite; a published set without a local copy is downloaded to the hub's cache."""
    _refuse_unknown(suite)
    if suite.endswith(".jsonl"):
        path = Path(suite).expanduser()
        if not path.is_file():
            raise UserError(f"eval.suites=[{suite}]: no such file; type eval.suites=[FILE.jsonl]")
        return path
    if directory is None:
        return _fetch(suite)
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise UserError(f"eval.suites_path={directory}: no such folder; leave it out to use the hub")
    names = SUITES[suite].folders
    endings = ("11_/valid.jsonl", "valid.jsonl") if SUITES[suite].file.startswith("11_") else ("valid.jsonl",)
    places = [f"{name}/{ending}" for name in names for ending in endings] + [f"{name}.jsonl" for name in names]
    for place in places:
        if (folder / place).is_file():
            return folder / place
    raise UserError(
        f"eval.suites_path={directory}: has no copy of {suite} (looked for {', '.join(places)}); put one there, or "
        "leave eval.suites_path out to use the hub"
    )


def _refuse_unknown(suite: str) -> None:
    if suite not in SUITES and not suite.endswith(".jsonl"):
        raise UserError(
            f"eval.suites=[{suite}]: must be of {', '.join(SUITES)}, or the path of a file that ends in .jsonl; "
            "type eval.suites=[dolly]"
        )


def _fetch(suite: str) -> Path:
    """The file in the hub's cache. The hub's client itself, not `datasets`: that one guesses one type per column."""
    from huggingface_hub import hf_hub_download

    repository, file = SUITES[suite].repository, SUITES[suite].file
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except OSError as error:  # every failure of the hub's client is one: no network, offline, no such file, no access
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:200]
        raise UserError(
            f"eval.suites=[{suite}]: {file} of {repository} cannot be fetched from the hub ({type(cause).__name__}: "
            f"{reason}); type eval.suites_path=FOLDER with a copy in {SUITES[suite].folders[0]}/valid.jsonl"
        ) from error


def _iterate(suite: str, path: Path) -> Iterator[Example]:
    limit = SUITES[suite].num_rows if suite == "unni" else None
    for example in islice(iterate_jsonl(path, key="eval.suites"), limit):
        yield _tidy(example) if suite in ("sni", "unni") else example


def _tidy(example: Example) -> Example:
    references = tuple(dict.fromkeys(reference.strip() for reference in example.references))
    return Example(example.instruction, example.input, references)

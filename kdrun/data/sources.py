"""Every data set by its name in the config: `data=unicode`, `docstrings`, `jsonl`, `dolly`, `ultrachat`."""

import logging
from collections import Counter
from functools import cache

from kdrun.data.docstrings import docstring_pairs
from kdrun.data.examples import Example, Splits, count_shared_prompts, fill_splits, split_by_hash, split_of
from kdrun.data.hub import load_dolly, load_ultrachat
from kdrun.data.jsonl import check_jsonl, iterate_jsonl, read_jsonl
from kdrun.data.unicode_names import unicode_names
from kdrun.errors import UserError

KEYS: dict[str, tuple[str, ...]] = {  # of data.KEY=, those that each set takes
    "unicode": (),
    "docstrings": (),
    "jsonl": ("path", "valid_path", "test_path"),
    "dolly": ("path", "revision"),
    "ultrachat": ("path", "revision"),
}
SOURCES = tuple(KEYS)

logger = logging.getLogger(__name__)


def load_splits(
    name: str,
    *,
    path: str | None = None,
    valid_path: str | None = None,
    test_path: str | None = None,
    revision: str | None = None,
) -> Splits:
    """Train, validation and test examples of a set; the first two are never empty.

    - `unicode`, `docstrings`: made on the spot, no key of their own; divided 90 / 5 / 5 by a hash of the prompt.
    - `jsonl`: `path` is the train file; what `valid_path` or `test_path` do not give is carved from it by hash, 5
      percent each.
    - `dolly`, `ultrachat`: from the hub, or from `path`, a local folder or another hub name; `revision` pins a commit.

    A prompt that stands both in train and in a held-out file given beside it is kept and counted in the log.
    Raises UserError when a key does not fit the set, or the set cannot be read.
    """
    if name not in SOURCES:
        raise UserError(f"data={name}: must be one of {', '.join(SOURCES)}; type data=unicode")
    _refuse_unused_keys(name, path=path, valid_path=valid_path, test_path=test_path, revision=revision)
    match name:
        case "jsonl":
            splits = _load_jsonl(path, valid_path, test_path)
        case "dolly":
            splits = load_dolly(path, revision=revision)
        case "ultrachat":
            splits = load_ultrachat(path, revision=revision)
        case _:
            splits = split_by_hash(_made(name))
    _refuse_empty(name, path, num_train=len(splits.train), num_valid=len(splits.valid))
    if not splits.test:
        logger.warning("data=%s: the test split carved by hash is empty", name)
    for held_out, examples in (("validation", splits.valid), ("test", splits.test)):
        if shared := count_shared_prompts(examples, splits.train):
            logger.warning("data=%s: %d of %d %s prompts stand in train too", name, shared, len(examples), held_out)
    return splits


def check_jsonl_splits(path: str, valid_path: str | None, test_path: str | None) -> None:
    """Every line of the files is checked and none kept, and enough of them are there to divide.

    Raises UserError as `load_splits`.
    """
    shares = {"valid_percent": 5 if valid_path is None else 0, "test_percent": 5 if test_path is None else 0}
    found = Counter(split_of(example, **shares) for example in iterate_jsonl(path))
    for key, held_out in (("valid", valid_path), ("test", test_path)):
        if held_out is not None:
            found[key] = check_jsonl(held_out, key=f"data.{key}_path")
    _refuse_empty("jsonl", path, num_train=found["train"], num_valid=found["valid"])


def _refuse_empty(name: str, path: str | None, *, num_train: int, num_valid: int) -> None:
    if not num_train or not num_valid:
        mend = "type data.valid_path=FILE" if name == "jsonl" else "give a larger set"
        raise UserError(
            f"data.path={path}: {num_train + num_valid} examples are too few to carve a validation split by hash; "
            f"{mend}"
        )


@cache
def _made(name: str) -> tuple[Example, ...]:
    """The whole of a set that is made on the spot, once a process: a sweep's cells share the 8 s of docstrings."""
    return tuple(unicode_names() if name == "unicode" else docstring_pairs())


def _load_jsonl(path: str | None, valid_path: str | None, test_path: str | None) -> Splits:
    if path is None:
        raise UserError("data=jsonl: needs a file to train on; type data.path=FILE")
    train = read_jsonl(path)
    if repeated := len(train) - len(set(train)):
        logger.warning("%s: %d of %d rows repeat an earlier one; each is trained on", path, repeated, len(train))
    valid = read_jsonl(valid_path, key="data.valid_path") if valid_path is not None else None
    test = read_jsonl(test_path, key="data.test_path") if test_path is not None else None
    missing = [word for word, part in (("validation", valid), ("test", test)) if part is None]
    if missing:
        logger.info("%s: %s carved from it by a hash of the prompt", path, " and ".join(missing))
    return fill_splits(train, valid, test)


def _refuse_unused_keys(name: str, **given: str | None) -> None:
    for key, value in given.items():
        if value is not None and key not in KEYS[name]:
            allowed = ", ".join(f"data.{word}" for word in KEYS[name]) or "no key of its own"
            raise UserError(f"data.{key}={value}: means nothing for data={name}, which takes {allowed}; leave it out")

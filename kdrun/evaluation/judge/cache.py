"""Answers on disk, one file a request: a rerun, or another run with the same text, asks nothing twice."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kdrun.runs.directory import write_json


@dataclass(frozen=True)
class Answer:
    """What the judge said. model: as the endpoint names itself; tokens: as it counts them, None where it does not."""

    text: str
    model: str | None
    finish_reason: str | None
    tokens_in: int | None
    tokens_out: int | None


class AnswerCache:
    """A folder of answers by request hash. Files are renamed into place, so processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, request: str) -> Path:
        """Where an answer lies: 256 subfolders, since a folder with 100,000 files is slow to list."""
        return self.folder / request[:2] / f"{request}.json"

    def get(self, request: str) -> Answer | None:
        """The answer to a request; None when there is none that can be read, so that it is asked again."""
        try:
            return Answer(**json.loads(self.path(request).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def put(self, request: str, answer: Answer) -> None:
        """Keep an answer."""
        write_json(self.path(request), asdict(answer))

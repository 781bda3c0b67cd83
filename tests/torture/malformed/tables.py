"""All malformed cases, by the folder that they are tried in: an empty one, or one with a finished run."""

from __future__ import annotations

from tests.torture.malformed.case import Case
from tests.torture.malformed.lines import LINES
from tests.torture.malformed.models import MODELS
from tests.torture.malformed.records import RECORDS
from tests.torture.malformed.words import WORDS

TABLES: dict[str, list[Case]] = {"words": WORDS, "lines": LINES, "models": MODELS, "records": RECORDS}
NEED_A_RUN = ("models", "records")

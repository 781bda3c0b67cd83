"""What the judge is asked, and what its answer says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdrun.evaluation.judge.cache import Answer
from kdrun.generation import endpoint as asking

KEYS = asking.Keys("judge.base_url", "judge.model", "judge.key_env", "judge.timeout_s")


@dataclass(frozen=True, kw_only=True)
class Endpoint(asking.Endpoint):
    """A chat endpoint; max_tokens: of an answer."""

    max_tokens: int
    path: str = "chat/completions"
    keys: asking.Keys = KEYS

    def body(self, prompt: str) -> asking.Body:
        """The JSON of a request. Temperature 0: the same question should get the same answer."""
        message = {"role": "user", "content": prompt}
        return {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": self.max_tokens}

    def request_hash(self, prompt: str) -> str:
        """SHA-256 of address and body: what the answer depends on, without the key."""
        return hashlib.sha256(json.dumps([self.url, self.body(prompt)], sort_keys=True).encode()).hexdigest()

    def answer(self, content: Any) -> Answer:
        """What a reply's JSON says; ValueError, LookupError, TypeError or AttributeError where it is no completion."""
        choice = content["choices"][0]
        text = choice["message"]["content"] or ""  # null: all tokens went into thoughts; an answer that says nothing
        usage = content.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError
        counts = [value if isinstance(value := usage.get(f"{part}_tokens"), int) else None
                  for part in ("prompt", "completion")]  # fmt: skip
        names = [self.redact(str(value)) if value is not None else None
                 for value in (content.get("model"), choice.get("finish_reason"))]  # fmt: skip
        return Answer(self.redact(text), names[0], names[1], counts[0], counts[1])


def ask_all(
    endpoint: Endpoint,
    prompts: Mapping[str, str],
    *,
    keep: Callable[[str, Answer], None],
    failed: Callable[[int], None],
) -> dict[str, str]:
    """The requests that failed for good, with the reason; see `generation.endpoint.ask_all`.

    Args:
        prompts: by request hash.
    """
    bodies = {request: endpoint.body(prompt) for request, prompt in prompts.items()}
    return asking.ask_all(endpoint, bodies, read=endpoint.answer, keep=keep, failed=failed)

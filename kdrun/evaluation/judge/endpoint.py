"""Asking an OpenAI-compatible endpoint: many requests at once, patient with a busy server, silent about the key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdrun.errors import UserError
from kdrun.evaluation.judge.cache import Answer

if TYPE_CHECKING:
    import httpx

STOP_AFTER = 10  # failed requests in a row, each tried `retries` times again: the endpoint is down, not the request
LONGEST_WAIT_S = 120.0  # a Retry-After beyond this is a refusal
SECRET_LENGTH = 8  # shorter keys are placeholders (EMPTY, ollama); taking "1" out of "[[1]]" would spoil an answer


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. key: sent as a bearer token, never shown; timeout_s: of one request, first byte to last;
    retries: after the first try; backoff_s: mean wait before the first retry, doubled for each further one."""

    base_url: str
    model: str
    key: str | None = field(repr=False)
    max_tokens: int
    timeout_s: float
    retries: int
    concurrency: int
    backoff_s: float = 1.0

    @property
    def url(self) -> str:
        """The address that requests are posted to."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def body(self, prompt: str) -> dict[str, Any]:
        """The JSON of a request. Temperature 0: the same question should get the same answer."""
        message = {"role": "user", "content": prompt}
        return {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": self.max_tokens}

    def request_hash(self, prompt: str) -> str:
        """SHA-256 of address and body: what the answer depends on, without the key."""
        return hashlib.sha256(json.dumps([self.url, self.body(prompt)], sort_keys=True).encode()).hexdigest()

    def redact(self, text: str) -> str:
        """A text from the server without the key, should it have sent that back, and fit to be written as UTF-8."""
        text = text.encode(errors="replace").decode()
        if self.key is None or len(self.key) < SECRET_LENGTH:
            return text
        # A JSON or URL writer may have escaped some of its characters.
        spelled = (rf"(?:\\?{re.escape(c)}|(?i:\\u{ord(c):04x}|%{ord(c):02x}))" for c in self.key)
        return re.sub("".join(spelled), "[key]", text)


class Failed(Exception):
    """One request without an answer; retry: whether to ask again, after_s: when the server wants it."""

    def __init__(self, reason: str, *, retry: bool, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry, self.after_s = retry, after_s


def ask_all(
    endpoint: Endpoint,
    prompts: Mapping[str, str],
    *,
    keep: Callable[[str, Answer], None],
    failed: Callable[[int], None],
) -> dict[str, str]:
    """The requests that failed for good, with the reason; every answer is handed to `keep` as it comes.

    Args:
        prompts: by request hash.
        failed: called for each request that failed for good, with their number so far.

    Raises:
        UserError: when the endpoint refuses the key or knows no such model or address (at once), and after
            `STOP_AFTER` failures in a row.
    """
    return asyncio.run(_ask_all(endpoint, prompts, keep, failed))


async def _ask_all(
    endpoint: Endpoint, prompts: Mapping[str, str], keep: Callable[[str, Answer], None], failed: Callable[[int], None]
) -> dict[str, str]:
    import httpx

    errors: dict[str, str] = {}
    waiting = iter(prompts.items())  # shared by the workers: each takes the next
    failures = 0

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal failures
        for request, prompt in waiting:
            try:
                answer = await _ask(client, endpoint, prompt)
            except Failed as error:
                errors[request] = str(error)
                failures += 1
                failed(len(errors))
                if failures >= STOP_AFTER:
                    raise UserError(
                        f"judge.base_url={endpoint.base_url}: {failures} requests in a row failed, the last with: "
                        f"{error}; the answers so far are kept, and the same words go on from them"
                    ) from None
            else:
                failures = 0
                keep(request, answer)

    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx.Limits(max_connections=endpoint.concurrency)
    # HTTP_PROXY would send even a loopback address to the proxy.
    trust_env = not is_loopback(endpoint.base_url)
    async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits, trust_env=trust_env) as client:
        workers = [asyncio.create_task(work(client)) for _ in range(min(endpoint.concurrency, len(prompts)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return errors


async def _ask(client: httpx.AsyncClient, endpoint: Endpoint, prompt: str) -> Answer:
    attempt = 0
    while True:
        try:
            return await _ask_once(client, endpoint, prompt)
        except Failed as error:
            if not error.retry or attempt == endpoint.retries:
                raise
            # Spread, so that workers who were turned away together do not come back together.
            mean_s = min(endpoint.backoff_s * 2**attempt, LONGEST_WAIT_S / 2)
            wait_s = mean_s * random.uniform(0.5, 1.5) if error.after_s is None else error.after_s
            attempt += 1
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.1))


async def _ask_once(client: httpx.AsyncClient, endpoint: Endpoint, prompt: str) -> Answer:
    import httpx

    try:
        async with asyncio.timeout(endpoint.timeout_s):
            response = await client.post(endpoint.url, json=endpoint.body(prompt))
    except TimeoutError:
        raise Failed(f"no answer within judge.timeout_s={endpoint.timeout_s:g}", retry=True) from None
    except httpx.InvalidURL as error:
        raise UserError(
            f"judge.base_url={endpoint.base_url}: {error}; type for example http://127.0.0.1:8000/v1"
        ) from None
    except httpx.RequestError as error:
        reason = endpoint.redact(" ".join(str(error).split()))
        raise Failed(f"{type(error).__name__}: {reason}", retry=True) from None
    status = response.status_code
    if status in (401, 403):  # the body is not shown: such messages hold parts of the key
        raise UserError(f"judge.key_env: {endpoint.url} answered {status}, so it does not take this key (or none)")
    if status == 404:
        raise UserError(
            f"judge.model={endpoint.model}: {endpoint.url} answered 404 ({_said(endpoint, response)}); "
            "check judge.model and judge.base_url"
        )
    if status != 200:
        after_s = _retry_after_s(response.headers.get("Retry-After"))
        retry = (status in (408, 429) or status >= 500) and (after_s or 0.0) <= LONGEST_WAIT_S
        wait = "" if after_s is None else f", retry after {after_s:.0f} s"
        raise Failed(f"HTTP {status}{wait}: {_said(endpoint, response)}", retry=retry, after_s=after_s)
    return _read(endpoint, response)


def _read(endpoint: Endpoint, response: httpx.Response) -> Answer:
    try:
        content = response.json()
        choice = content["choices"][0]
        text = choice["message"]["content"] or ""  # null: all tokens went into thoughts; an answer that says nothing
        usage = content.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError
        counts = [value if isinstance(value := usage.get(f"{part}_tokens"), int) else None
                  for part in ("prompt", "completion")]  # fmt: skip
        names = [endpoint.redact(str(value)) if value is not None else None
                 for value in (content.get("model"), choice.get("finish_reason"))]  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failed(f"not a chat completion: {_said(endpoint, response)}", retry=False) from None
    return Answer(endpoint.redact(text), names[0], names[1], counts[0], counts[1])


def _said(endpoint: Endpoint, response: httpx.Response) -> str:
    """The server's message, shortened after the key is taken out, lest half of it stay."""
    text = "".join(c if c.isprintable() else " " for c in endpoint.redact(response.text))
    text = " ".join(text.split())
    return text[:200] + ("..." if len(text) > 200 else "") if text else "empty body"


def _retry_after_s(header: str | None) -> float | None:
    """Seconds to wait: the header gives seconds or a date; None when it gives neither."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max((aware - datetime.now(UTC)).total_seconds(), 0.0)


def is_loopback(base_url: str) -> bool:
    """Whether an address means this machine."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

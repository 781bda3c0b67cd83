"""Asking an OpenAI-compatible endpoint: many requests at once, patient with a busy server, silent about the key."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from kdrun.errors import UserError

if TYPE_CHECKING:
    import httpx

Body = dict[str, Any]
Request = TypeVar("Request")
Reply = TypeVar("Reply")
STOP_AFTER = 10  # failed requests in a row, each tried `retries` times again: the endpoint is down, not the request
LONGEST_WAIT_S = 120.0  # a Retry-After beyond this is a refusal
SECRET_LENGTH = 8  # shorter keys are placeholders (EMPTY, ollama); taking "1" out of "[[1]]" would spoil an answer


@dataclass(frozen=True)
class Keys:
    """What the config calls an endpoint's address, model, key and patience, for messages."""

    url: str
    model: str
    key: str
    timeout: str


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where and how to ask. path: of the address, after base_url; key: sent as a bearer token, never shown; timeout_s:
    of one request, first byte to last; retries: after the first try; backoff_s: mean wait before the first retry,
    doubled for each further one."""

    base_url: str
    path: str
    model: str
    key: str | None = field(repr=False)
    keys: Keys
    timeout_s: float
    retries: int
    concurrency: int
    backoff_s: float = 1.0

    @property
    def url(self) -> str:
        """The address that requests are posted to."""
        return f"{self.base_url.rstrip('/')}/{self.path}"

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
    bodies: Mapping[Request, Body],
    *,
    read: Callable[[Any], Reply],
    keep: Callable[[Request, Reply], None],
    failed: Callable[[int], None] = lambda _: None,
) -> dict[Request, str]:
    """The requests that failed for good, with the reason; every reply is handed to `keep` as it comes.

    Args:
        bodies: the JSON of each request.
        read: a reply from its JSON; ValueError, LookupError, TypeError or AttributeError where that is none.
        failed: called for each request that failed for good, with their number so far.

    Raises:
        UserError: when the endpoint refuses the key or knows no such model or address (at once), and after
            `STOP_AFTER` failures in a row.
    """
    return asyncio.run(_ask_all(endpoint, bodies, read, keep, failed))


async def _ask_all(
    endpoint: Endpoint,
    bodies: Mapping[Request, Body],
    read: Callable[[Any], Reply],
    keep: Callable[[Request, Reply], None],
    failed: Callable[[int], None],
) -> dict[Request, str]:
    import httpx

    errors: dict[Request, str] = {}
    waiting = iter(bodies.items())  # shared by the workers: each takes the next
    failures = 0

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal failures
        for request, body in waiting:
            try:
                reply = await _ask(client, endpoint, body, read)
            except Failed as error:
                errors[request] = str(error)
                failures += 1
                failed(len(errors))
                if failures >= STOP_AFTER:
                    raise UserError(
                        f"{endpoint.keys.url}={endpoint.base_url}: {failures} requests in a row failed, the last with: "
                        f"{error}; the answers so far are kept, and the same words go on from them"
                    ) from None
            else:
                failures = 0
                keep(request, reply)

    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx.Limits(max_connections=endpoint.concurrency)
    # HTTP_PROXY would send even a loopback address to the proxy.
    trust_env = not is_loopback(endpoint.base_url)
    async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits, trust_env=trust_env) as client:
        workers = [asyncio.create_task(work(client)) for _ in range(min(endpoint.concurrency, len(bodies)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return errors


async def _ask(client: httpx.AsyncClient, endpoint: Endpoint, body: Body, read: Callable[[Any], Reply]) -> Reply:
    attempt = 0
    while True:
        try:
            return await _ask_once(client, endpoint, body, read)
        except Failed as error:
            if not error.retry or attempt == endpoint.retries:
                raise
            # Spread, so that workers who were turned away together do not come back together.
            mean_s = min(endpoint.backoff_s * 2**attempt, LONGEST_WAIT_S / 2)
            wait_s = mean_s * random.uniform(0.5, 1.5) if error.after_s is None else error.after_s
            attempt += 1
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.1))


async def _ask_once(client: httpx.AsyncClient, endpoint: Endpoint, body: Body, read: Callable[[Any], Reply]) -> Reply:
    import httpx

    keys = endpoint.keys
    try:
        async with asyncio.timeout(endpoint.timeout_s):
            response = await client.post(endpoint.url, json=body)
    except TimeoutError:
        raise Failed(f"no answer within {keys.timeout}={endpoint.timeout_s:g}", retry=True) from None
    except httpx.InvalidURL as error:
        raise UserError(f"{keys.url}={endpoint.base_url}: {error}; type for example http://127.0.0.1:8000/v1") from None
    except httpx.RequestError as error:
        reason = endpoint.redact(" ".join(str(error).split()))
        raise Failed(f"{type(error).__name__}: {reason}", retry=True) from None
    status = response.status_code
    if status in (401, 403):  # the body is not shown: such messages hold parts of the key
        raise UserError(f"{keys.key}: {endpoint.url} answered {status}, so it does not take this key (or none)")
    if status == 404:
        raise UserError(
            f"{keys.model}={endpoint.model}: {endpoint.url} answered 404 ({_said(endpoint, response)}); "
            f"check {keys.model} and {keys.url}"
        )
    if status != 200:
        after_s = _retry_after_s(response.headers.get("Retry-After"))
        retry = (status in (408, 429) or status >= 500) and (after_s or 0.0) <= LONGEST_WAIT_S
        wait = "" if after_s is None else f", retry after {after_s:.0f} s"
        raise Failed(f"HTTP {status}{wait}: {_said(endpoint, response)}", retry=retry, after_s=after_s)
    try:
        return read(response.json())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failed(f"no completion: {_said(endpoint, response)}", retry=False) from None


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


def read_key(name: str | None, *, key: str) -> str | None:
    """The key in an environment variable; None for None.

    Args:
        key: of the config, that names the variable.

    Raises:
        UserError: when the variable is empty or cannot be sent; its value is not shown.
    """
    if name is None:
        return None
    value = os.environ.get(name, "").strip()
    if not value:
        raise UserError(
            f"{key}={name}: this environment variable is not set; export it, or type {key}=null for an endpoint "
            "without a key"
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise UserError(f"{key}={name}: the value of this environment variable cannot be a key; export it anew")
    return value

"""The client against a server that errs, stalls, hangs up, talks rubbish and gives the key away."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from kdrun.errors import UserError
from kdrun.evaluation.judge.cache import Answer, AnswerCache
from kdrun.evaluation.judge.endpoint import Endpoint, ask_all
from kdrun.generation.endpoint import STOP_AFTER, _retry_after_s, is_loopback
from tests.evaluation.judge.loopback import Body, Loopback, Reply, prompt_of, says, serving

KEY = "sk-very/secret+key-123"


def endpoint_of(server: Loopback, **changes: object) -> Endpoint:
    endpoint = Endpoint(
        base_url=server.base_url, model="judge", key=None, max_tokens=16, timeout_s=10, retries=2, concurrency=2,
        backoff_s=0.001,
    )  # fmt: skip
    return replace(endpoint, **changes)


def ask(endpoint: Endpoint, *prompts: str) -> tuple[dict[str, Answer], dict[str, str]]:
    """Answers and errors by prompt."""
    answers: dict[str, Answer] = {}
    errors = ask_all(endpoint, {p: p for p in prompts}, keep=answers.__setitem__, failed=lambda _: None)
    return answers, errors


def at_first(bad: Reply, then: str = "[[7]]") -> Callable[[Body, int], Reply]:
    return lambda body, attempt: bad if attempt == 1 else says(then)


def test_a_request_holds_model_prompt_temperature_zero_and_the_key_as_a_bearer_token() -> None:
    with serving(lambda *_: says("[[7]]")) as server:
        answers, errors = ask(endpoint_of(server, key=KEY), "How good?")
    assert answers == {"How good?": Answer("[[7]]", "judge-2026", "stop", 100, 10)} and not errors
    messages = [{"role": "user", "content": "How good?"}]
    assert server.bodies == [{"model": "judge", "messages": messages, "temperature": 0, "max_tokens": 16}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize(
    "bad",
    [
        Reply("busy", 429, {"Retry-After": "0"}),
        Reply("busy", 429),
        Reply("{}", 500),
        Reply("bad gateway", 502),
        Reply("", drop=True),
        Reply("[]", stall_s=30),
    ],
    ids=["429 with Retry-After", "429", "500", "502", "hangs up", "stalls"],
)
def test_what_passes_is_asked_again(bad: Reply) -> None:
    with serving(at_first(bad)) as server:
        answers, errors = ask(endpoint_of(server, timeout_s=0.5 if bad.stall_s else 10), "one")
    assert answers["one"].text == "[[7]]" and not errors
    assert len(server.bodies) == 2 or bad.stall_s  # a busy machine may be late once more


def test_the_wait_is_at_least_what_the_server_asks_for() -> None:
    with serving(at_first(Reply("busy", 429, {"Retry-After": "0.4"}))) as server:
        ask(endpoint_of(server), "one")
    assert server.times[1] - server.times[0] >= 0.4


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Reply("out of\norder", 500), "HTTP 500: out of order"),
        (Reply("", drop=True), "RemoteProtocolError"),
        (Reply("", stall_s=30), "no answer within judge.timeout_s=0.3"),
    ],
    ids=["500", "hangs up", "stalls"],
)
def test_what_does_not_pass_is_an_error_after_the_last_retry(bad: Reply, reason: str) -> None:
    with serving(lambda *_: bad) as server:
        answers, errors = ask(endpoint_of(server, retries=1, timeout_s=0.3 if bad.stall_s else 10), "one")
    assert not answers and errors["one"].startswith(reason)
    assert len(server.bodies) == 2 or bad.stall_s


@pytest.mark.parametrize(
    "bad",
    [
        Reply("<html>welcome</html>"),
        Reply("[]"),
        Reply('{"choices": []}'),
        Reply('{"choices": [{"message": null}]}'),
        Reply('{"choices": [{"message": {"content": ["a", "b"]}}]}'),
        Reply("your prompt is too long", 400),
        Reply("come back tomorrow", 429, {"Retry-After": "86400"}),
        Reply("", 307, {"Location": "http://127.0.0.1:9/v1"}),
    ],
)
def test_rubbish_is_an_error_at_once(bad: Reply) -> None:
    with serving(lambda *_: bad) as server:
        answers, errors = ask(endpoint_of(server), "one")
    assert not answers and list(errors) == ["one"]
    assert len(server.bodies) == 1


def test_half_a_character_does_not_break_what_is_written() -> None:
    reply = says("[[7]]")
    reply.body = reply.body.replace("[[7]]", "\\ud83d [[7]]")  # the first half of an emoji, as JSON can hold it
    with serving(lambda *_: reply) as server:
        answers, _ = ask(endpoint_of(server), "one")
    assert answers["one"].text == "? [[7]]"


def test_an_empty_answer_is_an_answer_that_says_nothing() -> None:
    with serving(lambda *_: says(None, finish_reason="length")) as server:
        answers, _ = ask(endpoint_of(server), "one")
    assert answers["one"].text == "" and answers["one"].finish_reason == "length"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_at_once_in_one_line_without_the_key(status: int) -> None:
    reply = Reply(f"no such key {KEY} or model", status)
    with serving(lambda *_: reply) as server, pytest.raises(UserError) as caught:
        ask(endpoint_of(server, key=KEY, concurrency=1), *"abcdef")
    assert len(server.bodies) == 1
    assert str(status) in str(caught.value) and "\n" not in str(caught.value)
    assert KEY not in str(caught.value) and KEY[:8] not in str(caught.value)


def test_ten_failures_in_a_row_stop_and_what_was_answered_is_kept() -> None:
    answers: dict[str, Answer] = {}
    prompts = {f"{i}": f"{i}" for i in range(100)}
    keep = answers.__setitem__

    def three_then_down(body: Body, attempt: int) -> Reply:
        return says("[[7]]") if int(prompt_of(body)) < 3 else Reply("down", 500)

    with serving(three_then_down) as server, pytest.raises(UserError, match="10 requests in a row.*HTTP 500: down"):
        ask_all(endpoint_of(server, retries=0, concurrency=1), prompts, keep=keep, failed=lambda _: None)
    assert list(answers) == ["0", "1", "2"] and len(server.bodies) == 3 + STOP_AFTER


def test_failures_that_are_not_in_a_row_do_not_stop() -> None:
    with serving(lambda body, _: says("[[7]]") if int(prompt_of(body)) % 3 == 0 else Reply("", 500)) as server:
        answers, errors = ask(endpoint_of(server, retries=0, concurrency=1), *map(str, range(30)))
    assert (len(answers), len(errors)) == (10, 20)


def test_as_many_requests_are_under_way_as_concurrency_says() -> None:
    four = threading.Barrier(4)  # broken, and so a 500, unless four come together

    def together(*_: object) -> Reply:
        try:
            four.wait(timeout=20)
        except threading.BrokenBarrierError:
            return Reply("alone", 500)
        return says("[[7]]")

    with serving(together) as server:
        answers, errors = ask(endpoint_of(server, concurrency=4, retries=0), *map(str, range(8)))
    assert len(answers) == 8 and not errors


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda *_: says("[[7]]")) as server:
        answers, _ = ask(endpoint_of(server), "one")
    assert answers
    assert is_loopback("http://localhost:8000/v1") and is_loopback("http://[::1]:8000/v1")
    assert not is_loopback("https://example.org/v1") and not is_loopback("http://10.0.0.1/v1")


def test_a_key_that_the_server_sends_back_is_taken_out_however_it_is_written() -> None:
    endpoint = Endpoint(base_url="http://h/v1", model="m", key=KEY, max_tokens=1, timeout_s=1, retries=0, concurrency=1)
    ways = [KEY, json.dumps(KEY).replace("/", "\\/"), KEY.replace("+", "\\u002B"), KEY.replace("/", "%2f")]
    assert [endpoint.redact(f"<{way.strip(chr(34))}>") for way in ways] == ["<[key]>"] * 4
    assert KEY not in repr(endpoint)
    assert replace(endpoint, key="1").redact("[[1]]") == "[[1]]"
    with serving(lambda *_: says(f"The key is {KEY}. [[7]]", finish_reason=KEY)) as server:
        answers, _ = ask(endpoint_of(server, key=KEY), "one")
    assert answers["one"].text == "The key is [key]. [[7]]" and answers["one"].finish_reason == "[key]"
    with serving(lambda *_: Reply("x" * 190 + KEY, 500)) as server:  # a cut at 200 would leave half of it
        _, errors = ask(endpoint_of(server, key=KEY, retries=0), "one")
    assert "sk-" not in errors["one"]


def test_retry_after_is_seconds_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1000), usegmt=True)
    assert 900 < (_retry_after_s(soon) or 0) <= 1000
    assert (_retry_after_s("7"), _retry_after_s("-7"), _retry_after_s("soon"), _retry_after_s(None)) == (
        7,
        0,
        None,
        None,
    )


def test_a_request_hash_is_of_all_that_decides_the_answer_and_not_of_the_key() -> None:
    one = Endpoint(base_url="http://h/v1", model="m", key=KEY, max_tokens=1, timeout_s=1, retries=0, concurrency=1)
    same = [
        replace(one, key=None),
        replace(one, timeout_s=9, retries=9, concurrency=9),
        replace(one, base_url="http://h/v1/"),
    ]
    other = [replace(one, model="n"), replace(one, max_tokens=2), replace(one, base_url="http://g/v1")]
    assert {endpoint.request_hash("p") for endpoint in [one, *same]} == {one.request_hash("p")}
    assert len({endpoint.request_hash("p") for endpoint in [one, *other]} | {one.request_hash("q")}) == 5


def test_the_cache_gives_back_what_was_put_and_asks_again_for_what_is_broken(tmp_path) -> None:
    cache, answer = AnswerCache(tmp_path / "cache"), Answer("good \u00e9 [[7]]", None, "stop", 1, None)
    assert cache.get("ab12") is None
    cache.put("ab12", answer)
    assert AnswerCache(tmp_path / "cache").get("ab12") == answer
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["ab12.json"]
    cache.path("ab12").write_text('{"text": ')
    assert cache.get("ab12") is None

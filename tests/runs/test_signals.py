"""SIGINT and SIGTERM wait for the end of a step; a second one does not."""

import signal
import threading
from collections.abc import Iterator

import pytest

from kdrun.runs.signals import HeldSignals, exit_on_sigterm


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """SIGTERM as `kdrun train` has it; both as they were at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_on_sigterm()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def body(held: HeldSignals, *numbers: int, done: list[int]) -> None:
    """A step during which signals come."""
    with held:
        for number in numbers:
            signal.raise_signal(number)
            done.append(number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_acts_when_the_body_is_done(number: int, error: type[BaseException]) -> None:
    held, done = HeldSignals(), list[int]()
    with pytest.raises(error) as caught:
        body(held, number, done=done)
    assert done == [number] and not held.broken
    assert getattr(caught.value, "code", 143) == 143
    with pytest.raises(error):  # the handlers are what they were
        signal.raise_signal(number)
    body(held, done=done)  # it can be entered again, and an old signal does not come back


def test_a_second_signal_acts_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    held, done = HeldSignals(), list[int]()
    with pytest.raises(SystemExit):
        body(held, signal.SIGINT, signal.SIGTERM, done=done)
    assert done == [signal.SIGINT] and held.broken
    assert capfd.readouterr().err.count("once more stops at once\n") == 1


def test_an_error_of_the_body_comes_out_as_it_is() -> None:
    held = HeldSignals()

    def fail() -> None:
        with held:
            signal.raise_signal(signal.SIGINT)
            raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        fail()
    assert held.broken


def test_a_signal_that_is_ignored_stays_ignored_and_other_threads_are_left_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    held, errors = HeldSignals(), []
    with held:
        signal.raise_signal(signal.SIGINT)

    def enter() -> None:
        try:
            with HeldSignals():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors

"""All contestants write texts of the same, real lengths, and none takes part in another's randomness."""

from functools import partial

import pytest

from kdrun.bench import generate
from kdrun.bench.generate import GenerateCase, Task
from kdrun.data.examples import Example

RESPONSES = [1, 9, 30, 4, 2, 6, 3]  # words


def case(temperature: float = 1.0) -> GenerateCase:
    examples = [Example(f"Say {'so ' * (i % 4)}", "", ("word " * num,)) for i, num in enumerate(RESPONSES)]
    return GenerateCase(examples, None, 300, 1, 16, 2, 96, 12, (4, 3), 2, temperature, "cpu", 0)


@pytest.fixture(scope="module")
def task() -> Task:
    return case().build()


def test_texts_are_as_long_as_the_responses_with_their_end_and_at_most_the_limit(task: Task) -> None:
    """Each word is one or two tokens for a tokenizer that was made of these texts; the end is one more."""
    assert max(task.lengths) == 12
    assert len(set(task.lengths)) > 3
    for length, num_words in zip(task.lengths, RESPONSES, strict=True):
        assert min(num_words + 1, 12) <= length <= 2 * num_words + 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_contestant_writes_the_lengths_asked_for(temperature: float) -> None:
    task = case(temperature).build()
    contestants = task.case.contestants()
    assert [c.name for c in contestants] == [
        "kdrun, batch 4", "kdrun, batch 3", "generate, batch 2", "generate, sorted, batch 3",
    ]  # fmt: skip
    for contestant in contestants:
        work = contestant.start(task)
        work()  # raises if a length differs
        assert work.figures([2.0, 3.0]) == {"tokens_per_s": sum(task.lengths) * 2 / 5}


def test_a_text_of_another_length_than_asked_for_is_an_error(task: Task) -> None:
    work = generate.Writing(lambda task, _: [length + 1 for length in task.lengths], 2, task)
    with pytest.raises(RuntimeError, match="texts of other lengths than asked for"):
        work()


def test_a_batch_of_generate_ends_with_its_longest_text(task: Task, monkeypatch) -> None:
    """Neither earlier nor at max_new_tokens: the forward passes are counted."""
    calls = 0
    forward = task.model.forward

    def counted(*given, **more):
        nonlocal calls
        calls += 1
        return forward(*given, **more)

    monkeypatch.setattr(task.model, "forward", counted)
    for run, order in (
        (generate.run_generate, range(len(task.lengths))),
        (generate.run_sorted_generate, sorted(range(len(task.lengths)), key=lambda i: len(task.prompts[i]))),
    ):
        calls = 0
        partial(run, task, 2)()
        assert calls == sum(max(task.lengths[i] for i in order[at : at + 2]) for at in range(0, len(order), 2))


def test_the_targets_are_four_times_the_usual_and_three_times_at_the_same_batch() -> None:
    values = {name: getattr(case(), name) for name in GenerateCase.__dataclass_fields__}
    plan = generate.plan(**values)
    assert [(t.contestant, t.against, t.limit, t.at_least) for t in plan.targets] == [
        ("generate, batch 2", "kdrun, batch 4", 4.0, True), ("generate, batch 2", "kdrun, batch 3", 4.0, True),
        ("generate, sorted, batch 3", "kdrun, batch 3", 3.0, True),
    ]  # fmt: skip

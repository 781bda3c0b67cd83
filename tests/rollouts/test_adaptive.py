"""DistiLLM's threshold and buffer against its rule written down again, as in the published loop."""

import json
from collections import deque
from typing import Any

import numpy as np

from kdrun.data.encoding import EncodedSet
from kdrun.rollouts.adaptive import Adaptive
from kdrun.rollouts.rollout import Part

from .conftest import texts_of, writer_of

STEPS, CAPACITY = 300, 50


def adaptive(student: Any, rows: EncodedSet, **settings: Any) -> Adaptive:
    given = {"threshold": 0.0, "threshold_step": 0.1, "margin": 0.1, "buffer_size": CAPACITY, "num_steps": STEPS}
    return Adaptive(rows, writer_of(student, new=2), seed=0, **{**given, **settings})


def texts_learned(part: Part) -> list[list[int]]:
    return [part.encoded.row(int(i))[0].tolist() for i in part.rows]


def kind_of(part: Part, rollout: Adaptive) -> str:
    if part.writer == "data":
        return "data"
    return "replayed" if part.encoded is rollout.buffer else "new"


def test_300_steps_are_those_of_the_published_rule(student: Any, rows: EncodedSet) -> None:
    rollout = adaptive(student, rows)
    random, kinds = np.random.default_rng(7), []
    nats, bar, threshold, memory = 2.0, None, 0.0, deque[list[int]](maxlen=CAPACITY)
    for step in range(STEPS):
        if step % 10 == 0:  # a loss that wanders, up more often than down
            nats += float(random.normal(0.1, 0.2))
            rollout.validated(nats)
            if bar is None:
                bar = nats
            elif nats >= bar + 0.1:
                threshold, bar = min(threshold + 0.1, 1.0), nats
        drawn = rollout.stream(step).random()
        if drawn < threshold * (1 - step / STEPS) or (drawn < threshold and len(memory) < CAPACITY):
            expected = "new"
        else:
            expected = "replayed" if drawn < threshold else "data"
        chosen = random.choice(len(rows), 3, replace=False)
        (part,) = rollout.parts(step, chosen)
        kinds.append(kind_of(part, rollout))
        learned = texts_learned(part)
        assert kinds[-1] == expected, step
        assert rollout.threshold == threshold and rollout.reference == bar
        assert len(learned) == 3
        if expected == "new":
            memory.extend(learned)
            assert learned == texts_of(writer_of(student, new=2).write(rows, chosen, step))
        elif expected == "replayed":
            assert all(text in memory for text in learned)
            assert len(set(part.rows.tolist())) == 3, "drawn without repetition, as random.sample does"
        assert texts_of(rollout.buffer) == list(memory), "the newest 50"
    assert min(kinds.count(kind) for kind in ("new", "replayed", "data")) > 20
    values = rollout.observe(1.0)
    assert values["threshold"] == threshold and values["buffer"] == CAPACITY
    assert values["student_share"] == (STEPS - kinds.count("data")) / STEPS


def test_from_threshold_0_nothing_is_written_while_the_loss_stays_below_that_of_the_start_and_the_margin(
    student: Any, rows: EncodedSet
) -> None:
    rollout = adaptive(student, rows)
    for step, nats in enumerate([2.0, 1.0, 1.5, 2.09, 2.05]):  # 1.5 is worse than 1.0, but the bar never falls
        rollout.validated(nats)
        assert rollout.parts(step, np.arange(3))[0].writer == "data"
    rollout.validated(2.11)
    assert rollout.threshold == 0.1 and rollout.reference == 2.11


def test_a_buffer_smaller_than_a_batch_replays_what_it_has(student: Any, rows: EncodedSet) -> None:
    rollout = adaptive(student, rows, threshold=1.0, buffer_size=2)
    parts = [rollout.parts(step, np.arange(3))[0] for step in range(STEPS - 5, STEPS)]
    assert [len(part.rows) for part in parts] == [3, 2, 2, 2, 2]


def test_a_state_through_json_goes_on_exactly(student: Any, rows: EncodedSet) -> None:
    whole = adaptive(student, rows, threshold=0.8)
    whole.validated(1.0)
    for step in range(100, 130):
        whole.parts(step, np.arange(4))
    resumed = adaptive(student, rows, threshold=0.8)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    kinds = set()
    for step in range(130, 160):
        for rollout in (whole, resumed):
            rollout.validated(1.0 + 0.2 * (step == 140))
        (part,), (again,) = (rollout.parts(step, np.arange(4)) for rollout in (whole, resumed))
        kinds.add(kind_of(part, whole))
        assert texts_learned(part) == texts_learned(again)
        assert part.encoded.example_index[part.rows].tolist() == again.encoded.example_index[again.rows].tolist()
    assert kinds == {"data", "new", "replayed"}
    assert whole.threshold == resumed.threshold == 0.9
    states = [rollout.state_dict() for rollout in (whole, resumed)]
    for state in states:
        del state["written"]["seconds"]
    assert states[0] == states[1]
    fresh = adaptive(student, rows)
    fresh.load_state_dict(json.loads(json.dumps(fresh.state_dict())))
    assert len(fresh.buffer) == 0

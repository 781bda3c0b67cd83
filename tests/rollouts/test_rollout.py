"""Which text a step learns: shares, halves, the corpus; and the canaries of the loop on text that was just written."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from kdrun.data.batch import Batch, Group, make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.generation.reading import Mixture
from kdrun.losses import LOSSES, Loss, make_loss
from kdrun.rollouts.rollout import Contrastive, Part, Rollout, StudentText, WithCorpus, share_schedule
from kdrun.teachers.live import LiveTeacher
from kdrun.training.objective import StudentObjective
from tests.training.conftest import END, VOCABULARY, encoded, make_loop, tiny, update_of

from .conftest import texts_of, writer_of

WITH_TEACHER = sorted(set(LOSSES) - {"sft"})


def on_policy(
    student: Any, rows: EncodedSet, *, share: Callable[[float], float] = lambda progress: 1.0, **options: Any
) -> StudentText:
    return StudentText(rows, writer_of(student, **options), share=share, num_steps=100, seed=3)


def side_by_side(student: Any, rows: EncodedSet) -> Contrastive:
    return Contrastive(rows, writer_of(student), num_steps=100, seed=3)


def suited(name: str, student: Any, rows: EncodedSet) -> StudentText:
    return side_by_side(student, rows) if name == "cald" else on_policy(student, rows)


def with_corpus(rollout: Rollout) -> WithCorpus:
    corpus = replace(encoded(6, seed=4), prompt_lengths=np.ones(6, dtype=np.int32))
    return WithCorpus(rollout, corpus, rows=lambda step: np.arange(5), weight=0.3)


def test_schedules_of_the_students_share_by_hand() -> None:
    for schedule, expected in (("constant", [0.2] * 3), ("linear", [0.2, 0.3, 0.6]), ("geometric", [0.2, 0.327, 0.6])):
        share = share_schedule(0.2, 0.6, schedule=schedule)  # geometric: 1 - .8 (.4 / .8)^(1/4) = 1 - .8 x .8409
        assert [share(progress) for progress in (0.0, 0.25, 1.0)] == pytest.approx(expected, abs=1e-3)


def test_a_step_is_decided_by_seed_and_step_alone_as_often_as_the_share_says(student: Any, rows: EncodedSet) -> None:
    rollout = on_policy(student, rows, share=lambda progress: 0.3)
    writers = {step: rollout.parts(step, np.arange(2))[0].writer for step in reversed(range(60))}
    other = on_policy(student, rows, share=lambda progress: 0.3)
    assert writers == {step: other.parts(step, np.array([5]))[0].writer for step in range(60)}
    draws = np.array([rollout.stream(step).random() for step in range(2000)])
    assert abs((draws < 0.3).mean() - 0.3) < 3 * (0.3 * 0.7 / 2000) ** 0.5
    values = rollout.observe(1.0)
    assert values["student_share"] == list(writers.values()).count("student") / 60
    assert rollout.observe(1.0) == {"student_share": 0.0}


def test_no_text_is_drawn_with_the_number_that_decided_about_its_step(student: Any, rows: EncodedSet) -> None:
    """numpy takes the seeds (10, 3) and (10, 3, 0) for one: row 0 began with a small number in every mixed step."""
    rollout, step = on_policy(student, rows), 7
    deciding = rollout.stream(step).random(3)
    for row in range(3):
        assert not set(np.random.default_rng([3, step, row]).random(6)) & set(deciding)


def test_contrastive_puts_the_teachers_text_beside_the_students_to_the_same_prompts(
    student: Any, rows: EncodedSet
) -> None:
    chosen = np.array([4, 2, 9])
    theirs, own = side_by_side(student, rows).parts(5, chosen)
    assert (theirs.writer, theirs.weight, own.writer, own.weight) == ("teacher", 0.5, "student", 0.5)
    assert theirs.encoded is rows and theirs.rows.tolist() == [4, 2, 9]
    assert texts_of(own.encoded) == texts_of(writer_of(student).write(rows, chosen, 5))
    for number, row in enumerate(chosen):
        assert own.encoded.prompt(number).tolist() == rows.prompt(row).tolist()


def test_a_corpus_is_one_more_part_of_whatever_the_rollout_gives(student: Any, rows: EncodedSet) -> None:
    rollout = side_by_side(student, rows)
    beside = with_corpus(rollout)
    parts = beside.parts(0, np.arange(3))
    assert [(part.writer, part.weight) for part in parts] == [("teacher", 0.5), ("student", 0.5), ("corpus", 0.3)]
    assert beside.teacher_share == 0 and beside.state_dict() == rollout.state_dict()
    assert "generated_length" in beside.observe(1.0)


def test_a_run_that_goes_on_between_two_reports_reports_the_same(student: Any, rows: EncodedSet) -> None:
    whole = on_policy(student, rows, share=lambda progress: 0.5)
    resumed = on_policy(student, rows, share=lambda progress: 0.5)
    for step in range(20):
        if step == 9:
            resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        for rollout in (whole, resumed) if step >= 9 else (whole,):
            rollout.parts(step, np.arange(2))
    timed = {"generated_tokens_per_s", "generating_share"}
    reports = [{k: v for k, v in rollout.observe(1.0).items() if k not in timed} for rollout in (whole, resumed)]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_a_student_that_is_the_teacher_has_no_loss_on_its_own_text(name: str, student: Any, rows: EncodedSet) -> None:
    """And a teacher moved by one token raises it: labels are shifted once."""

    class Shifted(LiveTeacher):
        def hidden(self, batch: Batch) -> torch.Tensor:
            return super().hidden(replace(batch, groups=tuple(Group(ids, index - 1) for ids, index in batch.groups)))

    loop = make_loop(
        student,
        make_loss(name),
        rows,
        teacher=copy.deepcopy(student),
        kd_ratio=1.0,
        rollout=suited(name, student, rows),
    )
    sums = loop.step(0)
    assert abs(sums.divergence) / sums.num_tokens < 1e-6
    assert sums.grad_norm < 1e-6 or name in ("tvd", "gap"), "abs has a corner there"
    loop.teacher = Shifted(copy.deepcopy(student), rows=None)
    sums = loop.step(1)
    assert sums.divergence / sums.num_tokens > 1e-3


def test_every_token_that_the_student_wrote_is_learned_from_and_no_prompt_token(student: Any, rows: EncodedSet) -> None:
    """The first one, EOS where it was drawn, and the last of a text that was cut: positions P-1 .. L-2 of each row."""
    with torch.no_grad():
        student.transformer.wte.weight[END] *= 3
    (part,) = on_policy(student, rows).parts(0, np.arange(12))
    ends = [text[-1] == END for text in texts_of(part.encoded)]
    assert 0 < sum(ends) < 12
    batch = make_batch(part.encoded, part.rows, pad_id=END, device="cpu", writer=part.writer)
    seen: list[torch.Tensor] = []
    hook = student.transformer.ln_f.register_forward_hook(
        lambda m, i, output: seen.append(output) or output.retain_grad()
    )
    total, *_ = StudentObjective(student, make_loss("rkl"))(batch, LiveTeacher(tiny(5), rows=None))
    hook.remove()
    touched = [row for grad in torch.autograd.grad(total, seen) for row in (grad.abs().sum(-1) > 0).tolist()]
    for row, number in zip(touched, batch.rows, strict=True):
        ids, prompt = part.encoded.row(int(number))
        assert row == [prompt - 1 <= t <= len(ids) - 2 for t in range(len(row))]
    assert batch.num_scored == sum(map(len, texts_of(part.encoded))) - part.encoded.prompt_lengths.sum()


CASES: dict[str, tuple[Loss, Callable[[Any, Any, EncodedSet], Any]]] = {
    "student": (make_loss("rkl"), lambda student, teacher, rows: on_policy(student, rows)),
    "cald": (make_loss("cald"), lambda student, teacher, rows: side_by_side(student, rows)),
    "cald-code-corpus": (
        make_loss("cald", variant="code"),
        lambda student, teacher, rows: with_corpus(side_by_side(student, rows)),
    ),
    "minillm-mixture-corpus": (
        make_loss("minillm"),
        lambda student, teacher, rows: with_corpus(
            on_policy(student, rows, mixed_with=Mixture(teacher, 0.2, VOCABULARY))
        ),
    ),
    "data-corpus": (make_loss("sft"), lambda student, teacher, rows: with_corpus(Rollout(rows))),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_step_does_not_depend_on_its_micro_batches(
    case: str, student: Any, teacher: Any, rows: EncodedSet
) -> None:
    loss, rollout = CASES[case]
    updates = [
        update_of(
            lambda s, m=micro: make_loop(
                s, loss, rows, teacher=teacher if loss.needs_teacher else None, micro=m,
                rollout=rollout(s, teacher, rows),
            ),
            student,
        )
        for micro in (None, 4, 2, 1, 3)
    ]  # fmt: skip
    for update in updates[1:]:
        for key, value in update.items():
            torch.testing.assert_close(value, updates[0][key], rtol=1e-6, atol=1e-9)


def logits_of(model: Any, text: list[int], start: int) -> torch.Tensor:
    """The model's own logits that predict the tokens from `start` on."""
    return model(input_ids=torch.tensor([text])).logits[0, start - 1 : -1]


def nats_by_hand(part: Part, student: Any, teacher: Any, scored: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """`scored` of each text's tokens, one text at a time."""
    found = []
    for number in part.rows:
        ids, prompt = part.encoded.row(int(number))
        text = ids.tolist()
        q, p = (logits_of(model, text, prompt).log_softmax(-1) for model in (student, teacher))
        found.append(scored(q, p.detach(), torch.tensor(text[prompt:])))
    return found


def skl(q: torch.Tensor, p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - (0.1 * p.exp() + 0.9 * q.exp()).log())).sum(-1)


def srkl(q: torch.Tensor, p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (q.exp() * (q - (0.1 * q.exp() + 0.9 * p.exp()).log())).sum(-1)


def srkl_to_constant(q: torch.Tensor, p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (q.exp() * (q - (0.1 * q.detach().exp() + 0.9 * p.exp()).log())).sum(-1)


def surprise(q: torch.Tensor, p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(q, target, reduction="none")


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_a_contrastive_step_with_a_corpus_is_the_sum_written_down_text_by_text(
    variant: str, student: Any, teacher: Any, rows: EncodedSet
) -> None:
    """From transformers' own logits: halves of means over tokens, or the sum of means over texts of their means."""
    trained = copy.deepcopy(student)
    loop = make_loop(
        trained, make_loss("cald", variant=variant), rows, teacher=teacher, micro=3, kd_ratio=1.0,
        rollout=with_corpus(side_by_side(trained, rows)),
    )  # fmt: skip
    theirs, own, corpus = with_corpus(side_by_side(student, rows)).parts(0, loop.order.rows(0))
    on_theirs = nats_by_hand(theirs, student, teacher, skl)
    on_own = nats_by_hand(own, student, teacher, srkl if variant == "paper" else srkl_to_constant)
    assert len({len(nats) for nats in on_own}) > 1, "texts of different lengths"
    if variant == "paper":
        expected = torch.cat(on_theirs).mean() / 2 + torch.cat(on_own).mean() / 2
    else:
        expected = sum(nats.mean() for nats in on_theirs) / 8 + sum(nats.mean() for nats in on_own) / 8
    nll = torch.cat(
        nats_by_hand(corpus, student, teacher, lambda q, p, t: cross_entropy(q, t, reduction="none"))
    ).mean()
    expected = expected + 0.3 * nll
    expected.backward()
    sums = loop.step(0)
    assert sums.total / sums.num_tokens == pytest.approx(expected.item(), rel=1e-6)
    assert sums.corpus_nll == pytest.approx(nll.item(), rel=1e-6)
    assert sums.num_tokens == sum(map(len, on_theirs + on_own)), "counted after the text was written; the corpus apart"
    assert sums.divergence == pytest.approx(torch.cat(on_theirs + on_own).sum().item(), rel=1e-6)
    for before, after in zip(student.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad, rtol=1e-6, atol=1e-9)


def mixed_minillm(q: torch.Tensor, p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """With teacher_share 0.2 and the mean of the later rewards, token by token; weights are constants."""
    terms = []
    log_q, log_p = (x.gather(-1, target[:, None])[:, 0] for x in (q, p))
    rewards = (log_p - log_q).detach()
    for t in range(len(target)):
        weight = (log_q[t].exp() / (0.2 * log_p[t].exp() + 0.8 * log_q[t].exp())).detach()
        later = rewards[t + 1 :].mean() if t + 1 < len(target) else 0
        terms.append(weight * ((q[t].exp() * (q[t] - p[t])).sum() - later * log_q[t]))
    return torch.stack(terms)


def test_a_step_of_minillm_on_mixed_text_is_the_policy_gradient_written_down_text_by_text(
    student: Any, teacher: Any, rows: EncodedSet
) -> None:
    mixed = {"mixed_with": Mixture(teacher, 0.2, VOCABULARY)}
    trained = copy.deepcopy(student)
    loss, rollout = make_loss("minillm", ratio_clip=1e9), on_policy(trained, rows, **mixed)
    loop = make_loop(trained, loss, rows, teacher=teacher, micro=3, rollout=rollout)
    (own,) = on_policy(student, rows, **mixed).parts(0, loop.order.rows(0))
    expected = torch.cat(nats_by_hand(own, student, teacher, mixed_minillm)).mean()
    expected.backward()
    sums = loop.step(0)
    assert sums.total / sums.num_tokens == pytest.approx(expected.item(), rel=1e-6)
    for before, after in zip(student.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad, rtol=1e-6, atol=1e-9)


def test_cross_entropy_is_mixed_into_the_loss_on_text_of_the_data_and_the_teacher_and_not_on_the_students(
    student: Any, teacher: Any, rows: EncodedSet
) -> None:
    for rollout, share in ((Rollout(rows), 0.5), (Rollout(rows, writer="teacher"), 0.5), (on_policy(student, rows), 0)):
        sums = make_loop(student, make_loss("rkl"), rows, teacher=teacher, kd_ratio=0.5, rollout=rollout).step(0)
        assert sums.total == pytest.approx(share * sums.cross_entropy + (1 - share) * sums.divergence, rel=1e-9)
        assert sums.cross_entropy > 1

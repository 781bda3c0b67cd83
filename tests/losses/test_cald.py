import json

import numpy as np
import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import WrittenText, chunked_objective, make_loss
from kdrun.losses.skl import Skl
from kdrun.losses.srkl import Srkl
from tests.losses.test_reference import VECTORS


@pytest.mark.skipif(not VECTORS.exists(), reason=f"the reference vectors are not beside this checkout: {VECTORS}")
@pytest.mark.parametrize(("writer", "half"), [("data", "skl"), ("teacher", "skl"), ("student", "srkl")])
def test_each_half_agrees_with_its_float64_reference(writer, half):
    with np.load(VECTORS) as archive:
        vectors = dict(archive)
    cases = [c for c in json.loads(str(vectors["index"])) if c["divergence"] == half and c["regime"] != "wide"]
    assert len(cases) > 3
    for case in cases:
        student, teacher, mask = (
            torch.from_numpy(vectors[f"{case['regime']}.{key}"]) for key in ("student_logits", "teacher_logits", "mask")
        )
        student = student.clone().requires_grad_()
        nats = make_loss("cald", **case["params"]).on(writer)(student, teacher)
        nats[mask].mean().backward()
        reference, gradient = (torch.from_numpy(vectors[f"{case['key']}.{key}"]) for key in ("value", "grad"))
        assert ((nats.double() - reference).abs() <= 1e-4 * reference.abs() + 2e-6).all()
        assert (student.grad - gradient).norm() <= 2e-3 * gradient.norm() + 1e-7


def test_the_codes_reverse_half_has_the_papers_value_and_the_gradient_of_a_constant_mixture(random_logits):
    student, teacher = random_logits(6, 40, seed=1).requires_grad_(), random_logits(6, 40, seed=2)
    paper, code = (make_loss("cald", alpha=0.3, variant=v).on("student") for v in ("paper", "code"))
    nats = code(student, teacher)
    torch.testing.assert_close(nats, paper(student, teacher))
    log_q, p = student.log_softmax(-1), teacher.softmax(-1)
    plain = (log_q.exp() * (log_q - (0.3 * log_q.detach().exp() + 0.7 * p).log())).sum(-1)
    (expected,) = torch.autograd.grad(plain.sum(), student, retain_graph=True)
    (found,) = torch.autograd.grad(nats.sum(), student)
    torch.testing.assert_close(found, expected)
    (papers,) = torch.autograd.grad(paper(student, teacher).sum(), student)
    assert (found - papers).norm() > 0.05 * papers.norm()


def test_the_papers_tokens_count_alike_and_the_codes_texts_do(random_logits):
    """Texts of 1, 4 and 2 tokens: twice each text's mean, summed text by text."""
    lengths = (1, 4, 2)
    hidden, head = random_logits(7, 5, seed=1).requires_grad_(), random_logits(30, 5, seed=2)
    teacher_hidden, teacher_head = random_logits(7, 4, seed=3), random_logits(30, 4, seed=4)
    text = WrittenText(lengths, lambda: pytest.fail("log-probabilities are not needed"))
    for writer, alone in (("teacher", Skl()), ("student", make_loss("cald", variant="code").on("student"))):
        paper, code = (make_loss("cald", variant=variant) for variant in ("paper", "code"))
        assert (paper.mean_over, code.mean_over) == ("tokens", "texts")
        assert paper.on(writer).weigh(text) is None
        loss = code.on(writer)
        total = chunked_objective(loss, hidden, head, teacher_hidden, teacher_head, weights=loss.weigh(text)).total
        expected, start = torch.zeros((), dtype=torch.float64), 0
        for length in lengths:
            mean = torch.zeros((), dtype=torch.float64)
            for token in range(start, start + length):
                mean = mean + alone((hidden @ head.T)[[token]], (teacher_hidden @ teacher_head.T)[[token]])[0] / length
            expected, start = expected + 2 * mean, start + length
        torch.testing.assert_close(total, expected)
        (found,) = torch.autograd.grad(total, hidden)
        (by_hand,) = torch.autograd.grad(expected, hidden)
        torch.testing.assert_close(found, by_hand)
    assert len(make_loss("cald", variant="code").weigh(WrittenText((), text.log_probs)).divergence_N) == 0


def test_the_halves_are_skl_and_srkl_at_one_alpha():
    loss = make_loss("cald", alpha=0.2)
    assert loss.on("teacher") is loss.on("data") is loss and isinstance(loss, Skl)
    assert type(loss.on("student")) is Srkl and loss.on("student").alpha == loss.alpha == 0.2


@pytest.mark.parametrize("params", [{"alpha": 1.0}, {"alpha": -0.1}, {"variant": "trainer"}])
def test_values_outside_their_ranges_are_refused(params):
    with pytest.raises(UserError, match=rf"loss\.{next(iter(params))}="):
        make_loss("cald", **params)

"""Agreement with the teacher against the plain computation on whole logits."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kdrun.data.encoding import EncodedSet, encode
from kdrun.data.examples import Example
from kdrun.data.scored import collate
from kdrun.evaluation import agreement as module
from kdrun.evaluation.agreement import agreement, count_response_bytes
from kdrun.teachers.live import LiveTeacher
from tests.training.conftest import END, encoded, tiny


@pytest.fixture
def models() -> tuple[Any, Any]:
    return tiny(1), tiny(2, width=16)


def test_every_mean_is_that_of_the_plain_computation(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = models
    rows = encoded(13)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)  # chunks of 16 tokens
    found = agreement(student, LiveTeacher(teacher, rows=None), rows, pad_id=END, batch_size=4).means
    ids, labels = collate([rows.row(i) for i in range(13)], END)
    keep = labels[:, 1:] != -100
    with torch.no_grad():
        log_q = student(input_ids=ids).logits[:, :-1][keep].log_softmax(-1)
        log_p = teacher(input_ids=ids).logits[:, :-1][keep].log_softmax(-1)
    p, q, target = log_p.exp(), log_q.exp(), labels[:, 1:][keep]
    expected = {
        "nll": -log_q.gather(1, target[:, None]),
        "teacher_nll": -log_p.gather(1, target[:, None]),
        "fkl": (p * (log_p - log_q)).sum(-1),
        "rkl": (q * (log_q - log_p)).sum(-1),
        "tvd": (p - q).abs().sum(-1) / 2,
        "teacher_entropy": -(p * log_p).sum(-1),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double(),
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(float(values.mean()), rel=1e-4), name
    assert found["head_gap"] + found["tail_gap"] == pytest.approx(2 * found["tvd"], rel=1e-4)
    assert found["perplexity"] == pytest.approx(float(expected["nll"].mean().exp()), rel=1e-4)


def test_a_model_agrees_with_itself_entirely(models: tuple[Any, Any]) -> None:
    found = agreement(models[0], LiveTeacher(models[0], rows=None), encoded(5), pad_id=END, batch_size=2).means
    assert found["fkl"] == pytest.approx(0, abs=1e-6)
    assert found["top1_agreement"] == 1
    assert found["nll"] == found["teacher_nll"]


def test_values_of_a_row_do_not_depend_on_its_batch(models: tuple[Any, Any]) -> None:
    student, teacher = models[0], LiveTeacher(models[1], rows=None)
    one = agreement(student, teacher, encoded(9), pad_id=END, batch_size=1)
    many = agreement(student, teacher, encoded(9), pad_id=END, batch_size=9)
    for name, values in one.rows.items():
        assert values == pytest.approx(many.rows[name], rel=1e-4, abs=1e-7), name


def test_heads_are_cut_to_the_shared_rows(models: tuple[Any, Any]) -> None:
    student, teacher = models[0], LiveTeacher(models[1], rows=None)
    with torch.no_grad():
        student.transformer.wte.weight[35:] += 100  # rows that only the student has change nothing
    rows = encoded(3)
    before = agreement(tiny(1), teacher, _below(rows, 35), pad_id=END, batch_size=3, rows=35).means
    after = agreement(student, teacher, _below(rows, 35), pad_id=END, batch_size=3, rows=35).means
    assert after == pytest.approx(before)


def _below(rows: Any, limit: int) -> Any:
    return replace(rows, ids=rows.ids % limit)


def test_without_a_teacher_only_the_data_is_measured(models: tuple[Any, Any]) -> None:
    assert set(agreement(models[0], None, encoded(4), pad_id=END, batch_size=2).means) == {"nll", "perplexity"}


def test_progress_counts_rows_and_the_mode_is_restored(models: tuple[Any, Any]) -> None:
    done: list[int] = []
    models[0].train()
    agreement(models[0], None, encoded(5), pad_id=END, batch_size=2, advance=done.append)
    assert sum(done) == 5
    assert models[0].training


# -- head and tail -----------------------------------------------------------------------------------------------------


def test_head_and_tail_parts_are_the_sums_over_the_teachers_likeliest_entries(models: tuple[Any, Any]) -> None:
    """Head, by the published code: the top entry, and all that follow while their mass stays within 1/2."""
    student, teacher = models
    rows = encoded(11)
    found = agreement(student, LiveTeacher(teacher, rows=None), rows, pad_id=END, batch_size=4)
    expected: dict[str, list[float]] = {name: [] for name in ("fkl_head", "fkl_tail", "rkl_head", "rkl_tail")}
    for i in range(len(rows)):
        ids, num_prompt = rows.row(i)
        with torch.no_grad():
            log_q, log_p = (
                model(input_ids=torch.from_numpy(ids)[None].long()).logits[0, num_prompt - 1 : -1].log_softmax(-1)
                for model in (student, teacher)
            )
        sums = dict.fromkeys(expected, 0.0)
        for log_q_V, log_p_V in zip(log_q, log_p, strict=True):
            order = log_p_V.argsort(descending=True)
            num_head = max(1, int((log_p_V[order].exp().cumsum(0) <= 0.5).sum()))
            for part, entries in (("head", order[:num_head]), ("tail", order[num_head:])):
                difference = (log_p_V - log_q_V)[entries]
                sums[f"fkl_{part}"] += float((log_p_V[entries].exp() * difference).sum())
                sums[f"rkl_{part}"] -= float((log_q_V[entries].exp() * difference).sum())
        for name, value in sums.items():
            expected[name].append(value / len(log_q))
    for name, values in expected.items():
        assert found.rows[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
        tokens = rows.scored_lengths
        mean = float((np.array(values) * tokens).sum() / tokens.sum())
        assert found.means[name] == pytest.approx(mean, rel=1e-4), name
    assert min(found.rows["rkl_head"]) < 0  # a part may be negative


def test_head_and_tail_add_up_to_the_whole(models: tuple[Any, Any]) -> None:
    found = agreement(models[0], LiveTeacher(models[1], rows=None), encoded(9), pad_id=END, batch_size=4)
    for values in (found.means, {name: np.array(values) for name, values in found.rows.items()}):
        for name in ("fkl", "rkl"):
            assert values[f"{name}_head"] + values[f"{name}_tail"] == pytest.approx(values[name], abs=1e-6)


def test_of_a_model_and_itself_every_part_is_zero(models: tuple[Any, Any]) -> None:
    found = agreement(models[0], LiveTeacher(models[0], rows=None), encoded(5), pad_id=END, batch_size=2).means
    for name in ("fkl", "rkl", "fkl_head", "fkl_tail", "rkl_head", "rkl_tail", "head_gap", "tail_gap"):
        assert found[name] == pytest.approx(0, abs=1e-6), name


# -- without EOS -------------------------------------------------------------------------------------------------------


def with_a_cut_and_an_empty_response() -> EncodedSet:
    """Rows of `encoded`, the first without its EOS, the second with nothing but EOS after its prompt."""
    rows = encoded(6)
    parts = [rows.row(i)[0] for i in range(6)]
    parts[0] = parts[0][:-1]
    parts[1] = np.append(parts[1][: rows.prompt_lengths[1]], END).astype(np.int32)
    return replace(rows, ids=np.concatenate(parts), offsets=np.cumsum([0, *map(len, parts)]))


def test_lm_loss_and_bits_per_byte_leave_the_end_out(models: tuple[Any, Any]) -> None:
    student, rows = models[0], with_a_cut_and_an_empty_response()
    sizes = [7, 0, 11, 30, 5, 1]
    found = agreement(student, None, rows, pad_id=END, batch_size=4, eos_id=END, response_bytes=sizes)
    nats: list[list[float]] = []
    for i in range(6):
        ids, num_prompt = rows.row(i)
        with torch.no_grad():
            log_q = student(input_ids=torch.from_numpy(ids)[None].long()).logits[0].log_softmax(-1)
        scored = range(num_prompt, len(ids))
        nats.append([-float(log_q[t - 1, ids[t]]) for t in scored if ids[t] != END])
    assert [len(one) for one in nats[:2]] == [rows.scored_lengths[0], 0]
    per_token = [sum(one) / max(len(one), 1) for one in nats]
    assert found.rows["lm_loss"] == pytest.approx(per_token, rel=1e-5)
    assert found.means["lm_loss"] == pytest.approx(sum(per_token) / 6, rel=1e-5)
    bits = [sum(one) / math.log(2) for one in nats]
    assert found.rows["bits_per_byte"] == pytest.approx([b / max(n, 1) for b, n in zip(bits, sizes, strict=True)])
    assert found.means["bits_per_byte"] == pytest.approx(sum(bits) / sum(sizes), rel=1e-5)
    # and all tokens with their EOS where all are asked for
    assert found.means["nll"] == agreement(student, None, rows, pad_id=END, batch_size=4).means["nll"]


def test_bytes_without_the_end_or_of_other_rows_are_refused(models: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="eos_id"):
        agreement(models[0], None, encoded(2), pad_id=END, batch_size=2, response_bytes=[1, 1])
    with pytest.raises(ValueError, match="2 rows"):
        agreement(models[0], None, encoded(2), pad_id=END, batch_size=2, eos_id=END, response_bytes=[1])


def byte_level_tokenizer() -> Any:
    """256 tokens, one a byte, and <end>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def test_bytes_of_a_response_are_those_of_its_text() -> None:
    responses = ["plain", "", " spaced  out ,", "\u00e9\u4f60\U0001f600", "it says <end>"]
    examples = [Example("ask", "", (text,)) for text in responses]
    rows = encode(examples, byte_level_tokenizer(), template="plain", max_prompt_tokens=50, max_tokens=200)
    assert count_response_bytes(rows, byte_level_tokenizer()) == [len(text.encode()) for text in responses]


def test_of_a_cut_response_the_bytes_that_are_scored_count_and_no_divided_character() -> None:
    """ "a" + 3 characters of 3 bytes: a cut after 8 tokens leaves 7 bytes of text and one of the last character."""
    tokenizer = byte_level_tokenizer()
    settings = {"template": "plain", "max_prompt_tokens": 50}
    example = Example("ask", "", ("a" + 3 * "\u4f60",))
    prompt = int(encode([example], tokenizer, max_tokens=200, **settings).prompt_lengths[0])
    for scored, expected in ((11, 10), (10, 10), (9, 7), (8, 7), (7, 7), (1, 1)):
        rows = encode([example], tokenizer, max_tokens=prompt + scored, **{**settings, "max_prompt_tokens": prompt})
        assert count_response_bytes(rows, tokenizer) == [expected], scored

"""Padding, labels, and the positions that predict a scored token."""

import numpy as np
import pytest
import torch

from kdrun.data.encoding import encode
from kdrun.data.jsonl import read_jsonl
from kdrun.data.scored import collate, scored_positions

EOS = 9  # also the padding, as for GPT-2
# Two rows worked by hand: prompt 5 6 7 and response 3 EOS; prompt 5 and response EOS 4 8 EOS (an EOS id inside).
ROWS = [(np.array([5, 6, 7, 3, EOS], dtype=np.int32), 3), (np.array([5, EOS, 4, 8, EOS, 1], dtype=np.int32), 1)]


def test_ids_are_padded_on_the_right_and_labels_are_the_response_alone():
    ids_BT, labels_BT = collate(ROWS, EOS)
    assert ids_BT.tolist() == [[5, 6, 7, 3, EOS, EOS], [5, EOS, 4, 8, EOS, 1]]
    assert labels_BT.tolist() == [[-100, -100, -100, 3, EOS, -100], [-100, EOS, 4, 8, EOS, 1]]
    assert ids_BT.dtype == labels_BT.dtype == torch.int64


def test_each_target_stands_one_after_the_position_that_predicts_it():
    ids_BT, labels_BT = collate(ROWS, EOS)
    index_N, target_N = scored_positions(labels_BT)
    # Row 0: P = 3, L = 5 gives 2, 3. Row 1 begins at 6: P = 1, L = 6 gives 6 + 0 .. 6 + 4.
    assert index_N.tolist() == [2, 3, 6, 7, 8, 9, 10]
    assert target_N.tolist() == [3, EOS, EOS, 4, 8, EOS, 1]
    assert torch.equal(ids_BT.flatten()[index_N + 1], target_N)


def test_eos_is_scored_though_it_is_the_padding_and_padding_is_not():
    index_N, target_N = scored_positions(collate(ROWS, EOS)[1])
    assert (target_N == EOS).sum() == 3
    assert 4 not in index_N  # would predict the padding of row 0
    assert not {0, 1} & set(index_N.tolist())  # would predict its prompt


@pytest.mark.parametrize("pad_id", [EOS, 0, 5])
def test_what_is_scored_does_not_depend_on_the_padding_id(pad_id):
    _, labels_BT = collate(ROWS, pad_id)
    assert torch.equal(labels_BT, collate(ROWS, EOS)[1])


def test_scored_positions_count_the_tokens_after_the_prompt_for_any_lengths():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        rows = []
        for _ in range(4):
            length = int(torch.randint(1, 12, (), generator=generator))
            prompt_length = int(torch.randint(1, length + 1, (), generator=generator))
            rows.append((torch.randint(0, 10, (length,), generator=generator).tolist(), prompt_length))
        ids_BT, labels_BT = collate(rows, EOS)
        index_N, target_N = scored_positions(labels_BT)
        width = ids_BT.shape[1]
        # MiniLLM (lm_datasets.py): input = ids[:-1], label = ids[1:], label[:prompt_length - 1] masked.
        expected = [
            (b * width + t, ids[t + 1]) for b, (ids, prompt) in enumerate(rows) for t in range(prompt - 1, len(ids) - 1)
        ]
        assert list(zip(index_N.tolist(), target_N.tolist(), strict=True)) == expected


def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=10, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=EOS, eos_token_id=EOS
    )
    return GPT2LMHeadModel(config).eval().double()


def test_cross_entropy_at_scored_positions_is_that_of_transformers():
    model = tiny_gpt2()
    ids_BT, labels_BT = collate(ROWS, EOS)
    output = model(input_ids=ids_BT, labels=labels_BT)
    index_N, target_N = scored_positions(labels_BT)
    ours = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1)[index_N], target_N)
    assert ours.item() == pytest.approx(output.loss.item(), abs=1e-6)
    shifted = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1)[index_N - 1], target_N)
    assert abs(shifted.item() - ours.item()) > 1e-3


def test_every_response_token_gets_gradient_and_no_other_logit_does():
    model = tiny_gpt2()
    ids_BT, labels_BT = collate(ROWS, EOS)
    logits_BTV = model(input_ids=ids_BT).logits.detach().requires_grad_()
    index_N, target_N = scored_positions(labels_BT)
    torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1)[index_N], target_N, reduction="sum").backward()
    touched = logits_BTV.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, False, True, True, False, False], [True] * 5 + [False]]


def test_padding_changes_no_scored_position_of_a_causal_model_without_a_mask():
    model = tiny_gpt2()
    ids_BT, labels_BT = collate(ROWS, EOS)
    index_N, _ = scored_positions(labels_BT)
    padded = model(input_ids=ids_BT).logits.flatten(0, 1)[index_N]
    alone = []
    for row in ROWS:
        ids, labels = collate([row], EOS)
        alone.append(model(input_ids=ids).logits.flatten(0, 1)[scored_positions(labels)[0]])
    torch.testing.assert_close(padded, torch.cat(alone))


def test_an_encoded_set_scores_exactly_its_count_and_reads_back_its_responses(gpt2, dolly_path):
    examples = read_jsonl(dolly_path)[:64]
    encoded = encode(examples, gpt2, template="alpaca", max_prompt_tokens=256, max_tokens=512)
    ids_BT, labels_BT = collate([encoded.row(i) for i in range(len(encoded))], gpt2.eos_token_id)
    index_N, target_N = scored_positions(labels_BT)
    assert len(index_N) == len(target_N) == encoded.num_scored_tokens
    uncut = [i for i in range(len(encoded)) if encoded.row(i)[0][-1] == gpt2.eos_token_id]
    assert len(uncut) == len(encoded) - encoded.num_cut_responses
    for i in uncut:
        own = target_N[index_N // ids_BT.shape[1] == i]
        assert gpt2.decode(own) == examples[encoded.example_index[i]].response + "<|endoftext|>"


def test_a_whole_batch_of_one_example_with_pad_equal_to_eos_learns_to_stop():
    # The canary itself: three steps on one row must raise the probability of EOS after the response.
    model = tiny_gpt2()
    ids_BT, labels_BT = collate(ROWS[:1], EOS)
    index_N, target_N = scored_positions(labels_BT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stops = []
    for _ in range(4):
        log_probs = model(input_ids=ids_BT).logits.log_softmax(-1)
        stops.append(log_probs[0, 3, EOS].item())
        optimizer.zero_grad()
        (-log_probs.flatten(0, 1)[index_N].gather(1, target_N[:, None]).sum()).backward()
        optimizer.step()
    assert stops == sorted(stops)
    assert stops[-1] > stops[0] + 0.1


def test_a_row_that_scores_nothing_adds_nothing():
    index_N, target_N = scored_positions(collate([(np.array([1, 2]), 2)], EOS)[1])
    assert index_N.numel() == target_N.numel() == 0


@pytest.mark.parametrize(("ids", "prompt_length"), [([1, 2], 0), ([1, 2], 3), ([], 0), ([1], -1)])
def test_prompts_that_cannot_be_are_refused(ids, prompt_length):
    with pytest.raises(ValueError, match="prompt_length"):
        collate([(ids, prompt_length)], EOS)


def test_no_rows_and_a_scored_first_token_are_refused():
    with pytest.raises(ValueError, match="none to collate"):
        collate([], EOS)
    with pytest.raises(ValueError, match="first token"):
        scored_positions(torch.tensor([[4, 5]]))

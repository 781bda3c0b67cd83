"""From text to scored positions: the rows of a training against the same rows made by hand."""

from __future__ import annotations

from typing import Any

from kdrun.canaries.finding import Finding, fine, none_of
from kdrun.canaries.patient import Patient

ODD = (" ", "\n\n", "a  b", "Zo\u00eb \u2593 \u4e2d\u6587 \U0001f600", "### Response:\n", "0123456789", "<|endoftext|>")


def rows_are_their_texts(patient: Patient) -> Finding:
    """Ids and length of prompt of each row, against prompt + response + end encoded one by one."""
    faults = []
    for number, hand in zip(patient.numbers, patient.hand, strict=True):
        ids, num_prompt = patient.encoded.row(int(number))
        if (ids.tolist(), num_prompt) != (hand.ids, hand.num_prompt):
            faults.append(f"row {number} has {len(ids)} tokens, {num_prompt} of prompt; by hand {len(hand.ids)}, "
                          f"{hand.num_prompt}")  # fmt: skip
    return none_of(
        "rows", faults, len(patient.hand), of="rows as their texts are encoded",
        remedy="stored tokens are another tokenizer's or another version's: type data.encoded=null",
    )  # fmt: skip


def scored_tokens(patient: Patient) -> Finding:
    """The batch scores the response tokens and the end of each row, and nothing else."""
    batch = patient.batch()
    expected = [token for row in patient.in_order(batch) for token in row.scored]
    found = batch.target_N.tolist()
    if found == expected:
        return Finding("scored tokens", "ok", f"{len(found)}, all response tokens and ends", figure=float(len(found)))
    return Finding(
        "scored tokens", "FAIL", f"{len(found)} are scored; response tokens and ends counted by hand: {len(expected)}",
        "what is trained is not the response: mend kdrun.data.scored", float(len(found)),
    )  # fmt: skip


def positions(patient: Patient) -> Finding:
    """Each row is padded on the right, and its positions P - 1 to L - 2, no others, are what meets the loss."""
    batch = patient.batch()
    rows = iter(patient.in_order(batch))
    faults = []
    for group in batch.groups:
        width = group.ids_BT.shape[1]
        expected = []
        for b, ids_T in enumerate(group.ids_BT.tolist()):
            row = next(rows)
            padding = [patient.tokenizer.pad_token_id] * (width - len(row.ids))
            if ids_T != [*row.ids, *padding]:
                faults.append("a row is not its ids, then padding")
            expected += [b * width + t for t in range(row.num_prompt - 1, len(row.ids) - 1)]
        if group.index_N.tolist() != expected:
            faults.append("scored positions are not those before each response token")
    return none_of(
        "positions", faults, len(batch.groups), of="groups padded on the right, scored from P - 1 to L - 2",
        remedy="labels and hidden states are misaligned: mend kdrun.data.scored or kdrun.data.batch",
    )  # fmt: skip


def ends_once(patient: Patient) -> Finding:
    """A whole response ends with EOS and holds none before it."""
    end, faults, cut = patient.tokenizer.eos_token_id, [], 0
    for number, hand in zip(patient.numbers, patient.hand, strict=True):
        ids, num_prompt = patient.encoded.row(int(number))
        scored = ids[num_prompt:].tolist()
        was_cut = hand.scored[-1] != end
        cut += was_cut
        if scored.count(end) != (not was_cut) or (not was_cut and scored[-1] != end):
            faults.append(f"row {number} holds the end {scored.count(end)} times")
    note = f" ({cut} cut at data.max_tokens, without an end)" if cut else ""
    return none_of(
        "end of text", faults, len(patient.hand), of=f"responses ended once{note}",
        remedy="the student would not learn to stop: the response must not hold the end, and one must follow it",
    )  # fmt: skip


def response_is_encoded_alike(patient: Patient) -> Finding:
    """The response's tokens after its prompt as one text, against those of the response alone, as kdrun takes them."""
    words: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    num_alike = 0
    for row in patient.hand:
        alone = patient.tokenizer(row.response, **words)["input_ids"]
        joined = patient.tokenizer(row.prompt + row.response, **words)["input_ids"]
        num_alike += joined[len(joined) - len(alone) :] == alone
    return fine(
        "template", num_alike == len(patient.hand),
        f"{num_alike} of {len(patient.hand)} responses have the same tokens behind their prompt",
        remedy="kdrun encodes prompt and response apart, in training and generation alike; a model trained on whole "
        "texts has seen other tokens there: try another data.template",
    )  # fmt: skip


def texts_come_back(patient: Patient) -> Finding:
    """The response's tokens, decoded, are the response."""
    end, lost = patient.tokenizer.eos_token_id, []
    for row in patient.hand:
        text = patient.tokenizer.decode([t for t in row.scored if t != end], clean_up_tokenization_spaces=False)
        if text != row.response and not row.response.startswith(text):  # cut at max_tokens
            lost.append(row.response[:40])
    remedy = "the tokenizer normalises text, and references are compared with what it makes of it"
    return fine(
        "round trip", not lost,
        f"{len(patient.hand) - len(lost)} of {len(patient.hand)} responses are unchanged by encoding and decoding",
        remedy=f"for example {lost[0]!r}: {remedy}" if lost else "",
    )  # fmt: skip


def same_ids(patient: Patient, teacher_tokenizer: Any) -> Finding:
    """Both tokenizers make the same ids of the rows' texts and of odd ones: an id map alone does not say so."""
    texts = [*ODD, *(text for row in patient.hand for text in (row.prompt, row.response))]
    words: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ours, theirs = ([tokenizer(text, **words)["input_ids"] for text in texts]
                    for tokenizer in (patient.tokenizer, teacher_tokenizer))  # fmt: skip
    faults = [repr(text[:40]) for text, mine, other in zip(texts, ours, theirs, strict=True) if mine != other]
    return none_of(
        "tokenizers", faults, len(texts), of="texts with the same ids to teacher and student",
        remedy="the teacher would be given tokens that it does not read so: choose two models of one tokenizer",
    )  # fmt: skip

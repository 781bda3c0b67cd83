"""Text that the student writes in its training (rollout=student and the like): what stands there is what is scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kdrun.canaries.finding import Finding, none_of
from kdrun.canaries.objective import ROUNDED, sums_of
from kdrun.canaries.patient import Patient
from kdrun.generation.sampling import Sampling
from kdrun.rollouts.writer import StudentWriter

NEW_TOKENS = 8
TIE = 1e-2  # of logits: a token this near to the likeliest is as good, for rounding has decided


def own_text_is_scored_whole(patient: Patient) -> Finding:
    """Greedy texts as rows: every token the likeliest by the model's own forward, all of them and the end scored, and
    nothing to learn from the student itself on them."""
    eos, model = patient.tokenizer.eos_token_id, patient.student
    context = getattr(model.config, "max_position_embeddings", None) or 2**31
    writer = StudentWriter(
        model, Sampling(NEW_TOKENS, temperature=0), eos_id=eos, pad_id=patient.tokenizer.pad_token_id,
        batch_size=len(patient.numbers), max_tokens=context, seed=0,
    )  # fmt: skip
    texts = writer.write(patient.encoded, patient.numbers, 0)
    faults, wanted = [], []
    for i, number in enumerate(patient.numbers):
        ids, num_prompt = texts.row(i)
        if ids[:num_prompt].tolist() != patient.encoded.prompt(int(number)).tolist():
            faults.append(f"row {number} does not begin with its prompt")
            continue
        with torch.no_grad():
            logits_LV = model(input_ids=torch.tensor([ids.tolist()], device=patient.device), use_cache=False).logits[0]
        own = ids[num_prompt:].tolist()
        best = [float(x.max() - x[token]) for x, token in zip(logits_LV[num_prompt - 1 :], own, strict=False)]
        if not own or max(best) > TIE + patient.rounding * float(logits_LV.std()):
            faults.append(f"row {number} holds a token that the student does not write there")
        elif len(own) < min(NEW_TOKENS, context - num_prompt) and own[-1] != eos:
            faults.append(f"row {number} ends after {len(own)} tokens without the end that was emitted")
        wanted += own
    written = replace(patient, encoded=texts, numbers=np.arange(len(texts)))
    batch = written.batch()
    if sorted(batch.target_N.tolist()) != sorted(wanted):
        faults.append(f"{batch.num_scored} tokens are scored of {len(wanted)} written")
    nats = float(sums_of(written, patient.loss, written.itself())[2]) if patient.loss.needs_teacher else 0.0
    if abs(nats) > (ROUNDED + patient.rounding) * max(batch.num_scored, 1):
        faults.append(f"student against itself: {nats:.3g} nats")
    return none_of(
        "own text", faults, len(texts), of="texts of the student scored from the first token to the end",
        remedy="on-policy training would learn other tokens than were written: mend kdrun.generation.answers",
    )  # fmt: skip

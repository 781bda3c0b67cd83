"""BARTScore by a declared sequence-to-sequence checkpoint, one score an example.

Yuan, Neubig and Liu 2021, "BARTScore: Evaluating Generated Text as Text Generation", arXiv 2106.11520: how likely a
model finds one text when it reads the other. No package of it is kept; consulted: the authors' bart_score.py
(neulab/BARTScore), whose mean runs over all tokens that the tokenizer makes of the target, start and end included, as
here. It pads with whatever comes and has no rule for an empty text. Scores of two checkpoints do not compare.

Shapes: B pairs of a batch, S tokens of the longest source, T of the longest target, V vocabulary.
"""

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from kdrun.errors import UserError
from kdrun.evaluation.pairs import stripped_pairs
from kdrun.evaluation.pretrained import ModelKey, find_checkpoint, load_checkpoint

WHERE = ModelKey(
    "eval.bartscore_model", "a sequence-to-sequence model, such as BART or T5", "null", "AutoModelForSeq2SeqLM"
)
NAMES = ("bartscore_precision", "bartscore_recall", "bartscore_f1")
Pair = tuple[str, str]  # source, target
ENCODED_AT_ONCE = 4096  # texts whose token ids are made in one call


def find_seq2seq(name: str) -> str:
    """Return what from_pretrained takes: a folder's path, or a hub name as it is. Reads no weight, imports nothing.

    Raises UserError for a folder that is not there or holds no sequence-to-sequence model.
    """
    source = find_checkpoint(name, WHERE)
    if Path(source).is_dir():
        config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
        if config.get("is_encoder_decoder") is not True:
            raise UserError(
                f"{WHERE.key}={name}: a {config.get('model_type', 'nameless')} model cannot write one text having read "
                f"another; give the folder of {WHERE.kind}, or type {WHERE.key}={WHERE.instead}"
            )
    return source


class BartScore:
    """Log-likelihoods of a prediction given its reference, and of the reference given the prediction.

    `model` is a local folder or a hub name of any sequence-to-sequence checkpoint; it runs in float32. `batch_size`
    pairs of like length go through it at a time: their logits take batch_size x T x V x 4 bytes (8 texts of 256 tokens
    and 50265 entries: 0.4 GB).

    Raises UserError for a model that cannot be had, lacks weights, or is of another kind.
    """

    def __init__(self, model: str, *, device: str, batch_size: int = 8) -> None:
        from transformers import AutoTokenizer

        source = find_seq2seq(model)
        self._loaded = load_checkpoint(
            model, source, WHERE,
            unused="final_logits_bias",  # a buffer of zeros that some BARTs are published without
            tokenizer_for=lambda _: AutoTokenizer.from_pretrained(source, trust_remote_code=False),
        )  # fmt: skip
        self._name, self._device, self._batch_size = model, device, batch_size
        self._tokenizer, self._model = self._loaded.tokenizer, self._loaded.model.to(device).eval()
        self._frame: list[int] = self._tokenizer("")["input_ids"]  # what stands around every text: start, end
        if not self._frame:
            raise UserError(
                f"{WHERE.key}={model}: its tokenizer adds neither start nor end, so an empty text has no token; give "
                f"the folder of {WHERE.kind}, or type {WHERE.key}={WHERE.instead}"
            )

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
        """Return the scores of each prediction, in nats a token (below 0), each the best of its references.

        bartscore_precision: mean log-probability of the prediction's tokens given the reference; bartscore_recall: of
        the reference's given the prediction; bartscore_f1: the mean of the two. Ends of texts are stripped, texts of
        more tokens than the model has positions cut. An empty target scores -ln(V), as if drawn uniformly: the mean
        over its start and end alone would make an empty answer look likely. An empty source is read as it is.

        A pair's scores do not depend on the other pairs, their order or the batch size, up to float rounding. Each
        distinct pair is scored once. Raises ValueError unless there is a list of references for each prediction.
        """
        groups = stripped_pairs(predictions, references)
        both_ways = {pair for group in groups for p, r in group for pair in ((p, r), (r, p))}
        likelihood = self._log_likelihoods(both_ways)
        scores: dict[str, list[float]] = {name: [] for name in NAMES}
        for group in groups:
            triples = [(likelihood[r, p], likelihood[p, r]) for p, r in group]
            best = (max(p for p, _ in triples), max(r for _, r in triples), max((p + r) / 2 for p, r in triples))
            for name, value in zip(NAMES, best, strict=True):
                scores[name].append(value)
        return scores

    def protocol(self) -> dict[str, Any]:
        """Return what decides the numbers, for the run record."""
        return {
            "transformers": version("transformers"),
            "model": self._name,
            "model_type": self._model.config.model_type,
            "revision": self._loaded.revision,
            "weights_sha256": self._loaded.weights_sha256,
            "max_length": self._loaded.max_length,
            "measure": "mean log-probability of a target token in nats, start and end included",
            "precision": "prediction given reference",
            "recall": "reference given prediction",
            "f1": "mean of precision and recall",
            "several_references": "maximum, for precision, recall and F1 alone",
            "empty_target": "-ln(vocabulary)",
        }

    def _log_likelihoods(self, pairs: set[Pair]) -> dict[Pair, float]:
        """Return the mean log-probability of each pair's target given its source."""
        texts = sorted(set(chain.from_iterable(pairs)))
        ids: dict[str, list[int]] = {}
        for start in range(0, len(texts), ENCODED_AT_ONCE):
            some = texts[start : start + ENCODED_AT_ONCE]
            encoded = self._tokenizer(some, truncation=True, max_length=self._loaded.max_length)["input_ids"]
            ids.update(zip(some, encoded, strict=True))
        uniform = -math.log(self._model.get_output_embeddings().weight.shape[0])
        found = dict.fromkeys(pairs, uniform)
        # By length against padding; then by text, so that neither the caller's order nor a set's decides the batches.
        full = [pair for pair in pairs if ids[pair[1]] != self._frame]
        full.sort(key=lambda pair: (len(ids[pair[1]]), len(ids[pair[0]]), pair))
        for start in range(0, len(full), self._batch_size):
            batch = full[start : start + self._batch_size]
            values = self._of_batch([ids[source] for source, _ in batch], [ids[target] for _, target in batch])
            found.update(zip(batch, values, strict=True))
        return found

    def _of_batch(self, sources: list[list[int]], targets: list[list[int]]) -> list[float]:
        import torch
        from torch.nn.functional import cross_entropy
        from torch.nn.utils.rnn import pad_sequence

        def padded(rows: list[list[int]], value: int) -> torch.Tensor:
            return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value).to(
                self._device
            )

        mask_BS = padded([[1] * len(row) for row in sources], 0)
        labels_BT = padded(targets, -100)
        with torch.inference_mode():
            logits_BTV = self._model(
                input_ids=padded(sources, self._tokenizer.pad_token_id or 0),
                attention_mask=mask_BS,
                # Not `labels`: the model would take a loss of its own, with a second [B, T, V].
                decoder_input_ids=self._model.prepare_decoder_input_ids_from_labels(labels_BT),
                use_cache=False,
            ).logits
            # The decoder looks back only, so what is padded on the right changes nothing; row by row for the memory.
            values = [
                -float(cross_entropy(logits_TV[: len(row)], labels_T[: len(row)]))
                for logits_TV, labels_T, row in zip(logits_BTV, labels_BT, targets, strict=True)
            ]
        if not all(math.isfinite(value) for value in values):
            raise FloatingPointError(f"BARTScore by {self._name} is not finite: its weights are broken")
        return values

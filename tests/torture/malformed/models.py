"""Model folders and tokenizers that must be refused. The folder tried in holds a finished teacher of two layers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.malformed.case import Case, case, cut, drop, edit, put, setting, together

MODEL = "outputs/teachers/tiny-unicode/teacher"
CONFIG, WEIGHTS, TOKENIZER = f"{MODEL}/config.json", f"{MODEL}/model.safetensors", f"{MODEL}/tokenizer.json"
INDEX = f"{MODEL}/model.safetensors.index.json"
TRY = f"evaluate student={MODEL} data=unicode track.mode=disabled"
PAIR = "pair.vocab_size=300 pair.teacher_layers=2 pair.teacher_width=16 pair.teacher_heads=2"
TABLE = "transformer.wte.weight"
SECOND = "transformer.h.1.attn.c_attn.weight"


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the header of the weights; the bytes of the tensors stay."""

    def arrange(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        said = json.loads(content[8 : 8 + length])
        said = change(said) or said
        text = json.dumps(said).encode()
        put(WEIGHTS, struct.pack("<Q", len(text)) + text + content[8 + length :])(folder)

    return arrange


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the tensors (numpy arrays by name) and write them as a whole file again."""

    def arrange(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        found = dict(load_file(folder / WEIGHTS))
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return arrange


def index(weight_map: Any) -> Callable[[Path], None]:
    """An index of shards instead of the one file."""
    return together(drop(WEIGHTS), put(INDEX, json.dumps({"metadata": {}, "weight_map": weight_map})))


def _config(name: str, content: bytes | str, *expected: str) -> Case:
    return case(name, TRY, "student=", "config.json", *expected, arrange=put(CONFIG, content))


def _size(key: str, value: Any) -> Case:
    return case(f"config.json with {key}={json.dumps(value)}", TRY, "student=", key,
                arrange=setting(CONFIG, **{key: value}))  # fmt: skip


def _weights(name: str, arrange: Callable[[Path], Any], *expected: str) -> Case:
    return case(name, TRY, "student=", "safetensors", *expected, arrange=arrange)


def _tokenizer(name: str, arrange: Callable[[Path], Any], *expected: str) -> Case:
    return case(name, TRY, "student=", "tokenizer", *expected, arrange=arrange)


MODELS = [
    # config.json
    case("no config.json", TRY, "student=", "config.json", arrange=drop(CONFIG)),
    _config("an empty config.json", b""),
    _config("garbage for config.json", b"\x00\xff\xfe garbage"),
    _config("half a config.json", b'{"model_type": "gpt2", "n_'),
    _config("a list for config.json", b"[1, 2]", "object"),
    _config("a number for config.json", b"5", "object"),
    _config("an empty object for config.json", b"{}", "model_type"),
    _config("a deep config.json", b"[" * 100_000),
    _config("a config.json of many digits", b'{"n_embd": ' + b"9" * 10_000 + b"}"),
    _config("another kind of model", b'{"model_type": "t5", "is_encoder_decoder": true}', "encoder"),
    _config("a model that fills gaps", b'{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "MaskedLM"),
    _config("a model_type that is a number", b'{"model_type": 5}', "model_type"),
    *(_size(key, value) for key, value in [
        ("n_embd", -1), ("n_embd", 0), ("n_embd", 1.5), ("n_embd", "16"), ("n_embd", None), ("n_embd", 10**12),
        ("n_embd", 17), ("n_embd", []), ("n_embd", True), ("n_layer", -1), ("n_layer", 0), ("n_layer", 3),
        ("n_layer", 1), ("n_layer", 10**9), ("n_layer", "two"), ("n_head", 0), ("n_head", -2), ("n_head", 3),
        ("n_positions", 0), ("n_positions", -96), ("n_positions", 8), ("n_positions", "many"), ("vocab_size", -1),
        ("vocab_size", 0), ("vocab_size", 10), ("vocab_size", 301), ("vocab_size", 2**40),
    ]),
    case("a config.json that is a folder", TRY, "student=", "config.json",
         arrange=together(drop(CONFIG), lambda folder: (folder / CONFIG).mkdir())),
    # weights
    case("no weights", TRY, "student=", "no weights", arrange=drop(WEIGHTS)),
    case("weights as a pickle", TRY, "student=", "pickle",
         arrange=together(drop(WEIGHTS), put(f"{MODEL}/pytorch_model.bin", b"\x80\x02."))),
    _weights("an empty file of weights", put(WEIGHTS, b"")),
    _weights("seven bytes of weights", cut(WEIGHTS, 7)),
    _weights("half a header", cut(WEIGHTS, 100)),
    _weights("half the weights", cut(WEIGHTS, -5000)),
    _weights("weights short of a byte", cut(WEIGHTS, -1)),
    _weights("weights with a byte more", lambda folder: (folder / WEIGHTS).open("ab").write(b"\0")),
    _weights("garbage for weights", put(WEIGHTS, b"garbage" * 1000)),
    _weights("a pickle by another name", put(WEIGHTS, b"\x80\x02}q\x00." + b"\0" * 100)),
    _weights("a header of 2^63 bytes", put(WEIGHTS, struct.pack("<Q", 2**63) + b"{}")),
    _weights("a header of 10^12 bytes", put(WEIGHTS, struct.pack("<Q", 10**12) + b"{}")),
    _weights("a header of no bytes", put(WEIGHTS, struct.pack("<Q", 0))),
    _weights("a header that is a list", put(WEIGHTS, struct.pack("<Q", 2) + b"[]")),
    _weights("a header that is not UTF-8", put(WEIGHTS, struct.pack("<Q", 4) + b'{"\xff}')),
    _weights("a deep header", put(WEIGHTS, struct.pack("<Q", 10**5) + b"[" * 10**5)),
    _weights("no tensor", put(WEIGHTS, struct.pack("<Q", 2) + b"{}")),
    _weights("an unknown dtype", header(lambda said: said[TABLE].update(dtype="F99"))),
    _weights("a negative shape", header(lambda said: said[TABLE].update(shape=[-1, 16]))),
    _weights("a shape of other bytes", header(lambda said: said[TABLE].update(shape=[299, 16]))),
    _weights("offsets that overlap", header(lambda said: said[TABLE].update(data_offsets=[0, 64]))),
    _weights("offsets past the end", header(lambda said: said[TABLE].update(data_offsets=[0, 10**9]))),
    _weights("no table of tokens", tensors(lambda found: found.pop(TABLE)), "vocab_size"),
    _weights("a tensor of one layer missing", tensors(lambda found: found.pop(SECOND)), "attn.c_attn.weight"),
    _weights("a whole layer missing", tensors(
        lambda found: [found.pop(name) for name in list(found) if ".h.1." in name]), "n_layer"),
    _weights("a tensor of another shape", tensors(lambda found: found.update({SECOND: found[SECOND][:, :-1].copy()})),
             "attn.c_attn.weight"),
    _weights("a tensor turned round", tensors(lambda found: found.update({SECOND: found[SECOND].T.copy()})),
             "attn.c_attn.weight"),
    _weights("a shorter table of tokens", tensors(lambda found: found.update({TABLE: found[TABLE][:-1].copy()})),
             "vocab_size"),
    _weights("a folder for weights", together(drop(WEIGHTS), lambda folder: (folder / WEIGHTS).mkdir())),
    case("weights that link out", TRY, "link",
         arrange=together(drop(WEIGHTS), lambda folder: (folder / WEIGHTS).symlink_to("/etc/passwd"))),
    _weights("an index of nothing", index({})),
    _weights("an index that is a list", index([])),
    _weights("an index of a shard that is missing", index({TABLE: "model-00001-of-00002.safetensors"}), "00001"),
    _weights("an index that leads elsewhere", index({TABLE: "../../../elsewhere.safetensors"}), "elsewhere"),
    _weights("garbage for an index", together(drop(WEIGHTS), put(INDEX, b"{"))),
    _weights("an index without a map", together(drop(WEIGHTS), put(INDEX, b"{}"))),
    # tokenizers
    _tokenizer("no tokenizer", drop(TOKENIZER)),
    _tokenizer("an empty tokenizer", put(TOKENIZER, b"")),
    _tokenizer("garbage for a tokenizer", put(TOKENIZER, b"\xff\x00")),
    _tokenizer("half a tokenizer", cut(TOKENIZER, 400)),
    _tokenizer("a tokenizer that is a list", put(TOKENIZER, b"[]")),
    _tokenizer("an empty object for a tokenizer", put(TOKENIZER, b"{}")),
    _tokenizer("a tokenizer without a model", setting(TOKENIZER, model=...)),
    _tokenizer("a tokenizer with a model of null", setting(TOKENIZER, model=None)),
    _tokenizer("an unknown model of a tokenizer", edit(TOKENIZER, lambda said: said["model"].update(type="X"))),
    _tokenizer("an id that is a text", edit(TOKENIZER, lambda said: said["model"]["vocab"].update(a="five"))),
    _tokenizer("an id that is negative", edit(TOKENIZER, lambda said: said["model"]["vocab"].update(a=-5))),
    _tokenizer("merges of unknown pieces", edit(TOKENIZER, lambda said: said["model"]["merges"].append(["qq", "zz"]))),
    _tokenizer("more tokens than rows of the model", edit(
        TOKENIZER, lambda said: said["model"]["vocab"].update({f"more{n}": 300 + n for n in range(9)})), "vocab_size"),
    _tokenizer("a token of a far id", edit(TOKENIZER, lambda said: said["model"]["vocab"].update(far=10**6)),
               "vocab_size"),
    _tokenizer("a folder for a tokenizer", together(drop(TOKENIZER), lambda folder: (folder / TOKENIZER).mkdir())),
    _tokenizer("garbage for its settings", put(f"{MODEL}/tokenizer_config.json", b"{")),
    _tokenizer("a list for its settings", put(f"{MODEL}/tokenizer_config.json", b"[]")),
    _tokenizer("settings without an end", setting(f"{MODEL}/tokenizer_config.json", eos_token=None), "end-of-text"),
    # where a model is named
    case("a file for a model", f"evaluate student={CONFIG} data=unicode", "student=", "is a file"),
    case("an empty folder for a model", "evaluate student=empty data=unicode", "student=empty", "config.json",
         arrange=lambda folder: (folder / "empty").mkdir()),
    case("a hub name of three parts", "evaluate student=a/b/c data=unicode", "student=a/b/c"),
    case("a path of 5,000 letters for a model", "evaluate student=" + "a" * 5000 + " data=unicode", "aaa", "too long"),
    case("a teacher that is a file", f"train pair.teacher={CONFIG} {PAIR}", "pair.teacher=", "is a file"),
    case("a teacher without weights", f"train {PAIR}", "pair.teacher=", "no weights", arrange=drop(WEIGHTS)),
    case("a teacher of other sizes", f"train {PAIR} pair.teacher_layers=7", "pair.teacher_layers=7"),
    case("a teacher with half its weights", f"train {PAIR}", "pair.teacher=", "safetensors",
         arrange=cut(WEIGHTS, -5000)),
    case("a student with half its weights", f"train pair=gpt2 data=unicode pair.teacher={MODEL} pair.student={MODEL}",
         "safetensors", arrange=cut(WEIGHTS, -5000)),
    case("rows longer than the model's positions", f"train pair=gpt2 data=unicode data.max_tokens=4096 "
         f"pair.teacher={MODEL} pair.student={MODEL}", "data.max_tokens=4096", "96"),
    case("no tokenizer for a pair", "train role=teacher loss=sft pair.tokenizer=none_such", "pair.tokenizer=none_such"),
]  # fmt: skip

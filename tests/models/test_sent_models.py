"""A model that someone sent executes nothing, whatever its files ask for, and is read from its own folder only."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdrun.errors import UserError
from kdrun.models.loading import load_model, load_tokenizer
from tests.conftest import Kdrun
from tests.test_untrusted import evil, save, sent_run


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What a payload would create."""
    return tmp_path / "ran"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


def only_pickle(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(evil(ran)))


def pickled_shards(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": evil(ran)}, folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def pickle_in_a_shard(folder: Path, ran: Path) -> None:
    """The index of safetensors names a pickle."""
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "weights.bin").write_bytes(pickle.dumps(evil(ran)))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": "weights.bin"}})
    )


def adapter(folder: Path, ran: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"})
    )
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(evil(ran)))


def shard_outside(folder: Path, ran: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "secret.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    names = {"transformer.wte.weight": "../secret.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def linked_weights(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "secret.safetensors")


def edit(folder: Path, file: str, **changes: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))


def own_code(folder: Path, ran: Path) -> None:
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    edit(folder, "config.json", model_type="of_its_own", auto_map=names)


def kernels_of_the_hub(folder: Path, ran: Path) -> None:
    edit(folder, "config.json", attn_implementation="someone/kernel")


MODELS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a pickle": (only_pickle, r"convert it to safetensors: python -c .*AutoModelForCausalLM"),
    "a pickle in shards": (pickled_shards, "convert it to safetensors"),
    "a pickle as a shard of safetensors": (pickle_in_a_shard, "names weights.bin, no safetensors file"),
    "an adapter": (adapter, "adapter"),
    "a shard outside": (shard_outside, "no safetensors file in that folder"),
    "weights by a link": (linked_weights, "is a link out of that folder"),
    "code of its own": (own_code, "trust_remote_code=true"),
    "kernels of the hub": (kernels_of_the_hub, "attn_implementation=someone/kernel, code from elsewhere"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_would_run_code_or_read_elsewhere_is_refused(name: str, model: Path, ran: Path) -> None:
    arrange, message = MODELS[name]
    arrange(model, ran)
    with pytest.raises(UserError, match=message) as error:
        load_model(str(model), key="pair.teacher")
    assert "\n" not in str(error.value)
    assert not ran.exists()


def test_the_conversion_that_is_proposed_makes_the_same_model(model: Path, ran: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = load_model(str(model), key="k")
    torch.save(before.state_dict(), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model)
    for one, other in zip(before.parameters(), load_model(str(model), key="k").parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_hubs_own_cache_may_link_to_its_blobs(model: Path) -> None:
    blobs, snapshot = model.parent / "cache" / "blobs", model.parent / "cache" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    linked, plain = (load_model(str(folder), key="k").state_dict() for folder in (snapshot, model))
    assert linked.keys() == plain.keys()
    assert all(torch.equal(linked[name], plain[name]) for name in plain)


def test_code_of_a_tokenizer_and_of_its_chat_template_does_not_run(model: Path, ran: Path) -> None:
    from kdrun.data.examples import Example
    from kdrun.data.template import render_prompt

    (model / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    names = {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}
    edit(model, "tokenizer_config.json", auto_map=names)
    template = "{{ cycler.__init__.__globals__.os.system('touch RAN') }}".replace("RAN", str(ran))
    (model / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(str(model), key="k")
    with pytest.raises(UserError, match=r"data.template=chat: .*SecurityError"):
        render_prompt(Example("a", "", ("b",)), "chat", tokenizer=tokenizer)
    assert not ran.exists()


def test_models_that_score_texts_are_held_to_the_same(model: Path, ran: Path) -> None:
    from kdrun.evaluation.bartscore import BartScore
    from kdrun.evaluation.bertscore import BertScore

    edit(model, "config.json", is_encoder_decoder=True)
    scorers = {
        "bertscore": lambda: BertScore(str(model), layer=1),
        "bartscore": lambda: BartScore(str(model), device="cpu"),
    }
    for arrange, message in ((own_code, "code of its own|cannot load"), (only_pickle, "convert it to safetensors")):
        arrange(model, ran)
        for name, make in scorers.items():
            with pytest.raises(UserError, match=rf"eval.{name}_model=.*({message})") as error:
                make()
            assert "\n" not in str(error.value)
    assert not ran.exists()


def test_a_runs_record_does_not_decide_that_the_code_of_its_models_runs(
    model: Path, ran: Path, kdrun_here: Kdrun, tmp_path: Path
) -> None:
    own_code(model, ran)
    pair = {"kind": "pretrained", "name": "x", "teacher": str(model), "student": str(model), "sft": None,
            "teacher_dtype": "fp32", "trust_remote_code": True}  # fmt: skip
    shown = kdrun_here("train", "--cfg", "job", "data=unicode").stdout
    config = yaml.safe_load(shown) | {"pair": pair}
    run = sent_run(tmp_path / "run", [], yaml.safe_dump(config))
    shutil.copytree(model, run / "student")
    words = [f"run={run}", "eval.bertscore=false", "track.mode=disabled", "data.encoded=null", "data=unicode"]
    done = kdrun_here("evaluate", *words, check=False)
    assert done.returncode == 2 and "trust_remote_code=true is typed" in done.stderr, done.stderr
    assert not ran.exists()

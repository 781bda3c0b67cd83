"""Every file in conf/ and experiments/ composes and is allowed; the schema and the losses say the same."""

import ast
import functools
import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.config import LOSS_SECTIONS, SHORT_KEYS, TrainConfig, loss_parameters
from kdrun.errors import UserError
from kdrun.explain import group_options
from kdrun.losses import LOSSES, make_loss
from kdrun.words import read_flags

NO_FLAGS = read_flags([])
EXTRA = {  # what a choice cannot do without
    "data=jsonl": ["data.path=rows.jsonl"],
    "loss=cald": ["rollout=contrastive"],
    "loss=minillm": ["rollout=student"],
    "experiment=method/minillm": ["data.corpus=text.txt"],
}


def options(*groups: str) -> list[str]:
    return [f"{group}={name}" for group in groups for name in group_options(CONF, group)]


@functools.cache
def config_of(*words: str, command: str = "train") -> TrainConfig:
    return compose_cells(command, list(words), NO_FLAGS, CONF)[0].config


TRAINS = ("loss", "rollout", "pair", "data", "teacher", "adapter", "train", "launch", "eval", "track")


@pytest.mark.parametrize("choice", options(*TRAINS))
def test_every_choice_of_the_train_config_is_allowed(choice: str) -> None:
    assert config_of(choice, *EXTRA.get(choice, []))


@pytest.mark.parametrize("choice", options("pair", "data", "eval", "track"))
def test_every_choice_of_the_evaluate_config_is_allowed(choice: str) -> None:
    subject = [] if choice.startswith("pair=") else ["student=some/model"]
    data = [] if choice.startswith("data=") else ["data=unicode"]
    assert config_of(choice, *subject, *data, *EXTRA.get(choice, []), command="evaluate")


@pytest.mark.parametrize("name", group_options(CONF, "experiment"))
def test_every_experiment_composes_in_every_cell(name: str) -> None:
    word = f"experiment={name}"
    cells = compose_cells("train", [word, *EXTRA.get(word, [])], read_flags(["--multirun"]), CONF)
    assert cells


def test_every_experiment_has_its_result_beside_it() -> None:
    for name in group_options(CONF, "experiment"):
        folder = CONF / "experiment" / name
        readme = (folder.parent if "/" in name else folder) / "README.md"
        assert readme.exists(), f"{readme}: question, command, verdict"
        assert "kdrun sweep experiment=" in readme.read_text() or "kdrun train experiment=" in readme.read_text()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_schema_yaml_and_class_of_a_loss_have_the_same_parameters_and_defaults(name: str) -> None:
    section = config_of(f"loss={name}", *EXTRA.get(f"loss={name}", [])).loss
    parameters = inspect.signature(LOSSES[name]).parameters
    assert loss_parameters(section) == {key: parameter.default for key, parameter in parameters.items()}
    assert make_loss(name, **loss_parameters(section)).needs_teacher == (name != "sft")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("loss=cald", "rollout=data: does not suit loss=cald: .*; type rollout=contrastive, or another loss"),
        ("loss=minillm rollout=mixed", "rollout=mixed: does not suit loss=minillm: .*; type rollout=student, or"),
        ("loss=sft rollout=student", "rollout=student: does not suit loss=sft: .*; type rollout=data or rollout=teach"),
        ("loss=minillm rollout=student rollout.temperature=0.7", "rollout.temperature=0.7, top_k=0, .*temperature=1 "),
        ("rollout=adaptive train.valid_every=null", "train.valid_every=null: .*; type train.valid_every=50, or"),
        ("rollout=mixed teacher=cached", "teacher=cached: rollout=mixed .*; type teacher=live, or rollout=data"),
    ],
)
def test_a_senseless_pair_of_text_and_loss_is_refused_with_the_reason(words: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        config_of(*words.split())


def test_every_loss_has_a_yaml_and_a_section() -> None:
    sections = {section.model_fields["name"].annotation.__args__[0] for section in LOSS_SECTIONS}
    assert sections == set(LOSSES) == set(group_options(CONF, "loss"))


def test_short_keys_are_the_parameters_of_the_losses_and_collide_with_nothing() -> None:
    assert {"mu", "beta", "alpha", "kd_ratio", "temperature", "head", "reversed"} <= SHORT_KEYS
    assert not SHORT_KEYS & set(TrainConfig.model_fields)


def test_a_group_file_sets_its_own_node_only_and_no_key_is_deeper_than_two() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train")
    for group, node in config.items():
        for key in node if hasattr(node, "items") else []:
            assert not hasattr(node[key], "items"), f"{group}.{key} has keys of its own"


def test_the_paper_runs_have_the_papers_values() -> None:
    gpt2, llama = config_of("pair=gpt2"), config_of("pair=llama")
    assert (gpt2.train.epochs, gpt2.train.batch_size, gpt2.train.lr, gpt2.data.max_tokens) == (20, 32, 5e-4, 512)
    assert (llama.train.epochs, llama.train.batch_size, llama.train.lr, llama.data.max_tokens) == (10, 60, 1e-5, 512)
    assert gpt2.data.name == llama.data.name == "dolly"
    assert gpt2.loss.kd_ratio == 0.5 and gpt2.loss.mu == 0.5
    paper = config_of("eval=paper").eval
    assert paper.seeds == (10, 20, 30, 40, 50) and not paper.greedy and paper.num_examples is None
    assert (paper.temperature, paper.top_k, paper.top_p, paper.no_repeat_ngram_size) == (1.0, 0, 1.0, 6)
    assert paper.max_new_tokens == 256


def test_every_config_key_is_read_somewhere() -> None:
    """A flag parsed and never read is a fault found in the field: each key's name occurs in code that reads it."""
    package = Path(__file__).parents[1] / "kdrun"
    code = "\n".join(
        path.read_text()
        for path in package.rglob("*.py")
        if path.name != "explain.py" and not {"config", "losses"} & set(path.relative_to(package).parts)
    )
    for group in ("train", "eval", "track", "pair", "data", "teacher", "launch", "rollout"):
        for choice in group_options(CONF, group):
            config = config_of(f"{group}={choice}", *EXTRA.get(f"{group}={choice}", []))
            for key in type(getattr(config, group)).model_fields:
                # Read by the schema itself, or with the role before it.
                prefixed = key == "kind" or (group == "pair" and key.startswith(("teacher_", "student_")))
                assert f".{key}" in code or f'"{key}"' in code or prefixed, f"{group}.{key} is read nowhere"
    for key in TrainConfig.model_fields:
        assert f"config.{key}" in code, key


@pytest.mark.parametrize(("group", "room"), [("bench", "bench"), ("study", "studies")])
def test_every_key_of_a_benchmark_or_study_is_read_where_it_belongs(group: str, room: str) -> None:
    """As a name that is loaded, an attribute or a string, in the command or its room; the doctor has train's keys."""
    package = Path(__file__).parents[1] / "kdrun"
    files = [package / "commands" / f"{group}.py", *(package / room).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    read |= {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    for choice in group_options(CONF, group):
        config = config_of(f"{group}={choice}", command=group)
        for key in [*type(config).model_fields, *type(getattr(config, group)).model_fields]:
            # teacher_width may be read as f"{role}_width", whose constant part is _width
            prefixed = key.startswith(("teacher_", "student_")) and key[len("teacher") :] in read
            assert key in read or prefixed, f"{group}={choice}: {key} is read nowhere"

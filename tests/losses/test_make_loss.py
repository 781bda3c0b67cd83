import inspect

import pytest

from kdrun.errors import UserError
from kdrun.losses import LOSSES, Loss, make_loss

NAMES = [
    "sft", "fkl", "rkl", "fkl_rkl", "akl", "jsd", "tvd", "skl", "srkl", "ab", "alpha", "taid", "amid", "gap", "cald",
    "minillm",
]  # fmt: skip


def test_there_are_sixteen_losses_each_in_a_file_of_its_name():
    assert sorted(LOSSES) == sorted(NAMES)
    for name, kind in LOSSES.items():
        assert issubclass(kind, Loss)
        assert kind.__module__ == f"kdrun.losses.{name}"


def test_every_loss_has_defaults_for_all_its_parameters():
    for name, kind in LOSSES.items():
        assert isinstance(make_loss(name), kind)
        assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(kind).parameters.values())


def test_only_sft_needs_no_teacher():
    assert [name for name in NAMES if not make_loss(name).needs_teacher] == ["sft"]


def test_a_loss_without_a_schedule_observes_nothing_and_has_no_state():
    loss = make_loss("akl")
    assert loss.observe(1.0, 0.5) == {}
    assert loss.state_dict() == {}
    loss.load_state_dict({})


def test_an_unknown_name_is_answered_with_a_near_one_and_the_list():
    with pytest.raises(UserError, match=r"loss=akll: no such loss, did you mean akl; one of sft, .*gap"):
        make_loss("akll")


def test_an_unknown_parameter_is_answered_with_a_near_one_and_the_list():
    with pytest.raises(UserError, match=r"loss\.heads: .*did you mean head; one of mu, head, reversed"):
        make_loss("akl", heads="code")
    with pytest.raises(UserError, match=r"loss\.mu: .*it takes none"):
        make_loss("fkl", mu=0.5)


def test_a_value_out_of_range_is_answered_in_one_line_with_key_value_range_and_what_to_type():
    with pytest.raises(UserError) as refusal:
        make_loss("akl", mu=1.5)
    assert str(refusal.value) == "loss.mu=1.5: must be a finite number in (0, 1); for example loss.mu=0.5"

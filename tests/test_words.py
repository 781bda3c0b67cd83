"""The words of a command line, before Hydra sees them."""

import pytest

from kdrun.words import expand_short_key, key_of, quote, read_flags, split_words, value_of


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mu=0.5", "loss.mu=0.5"),
        ("+mu=0.5", "+loss.mu=0.5"),
        ("++kd_ratio=1", "++loss.kd_ratio=1"),
        ("~mu", "~loss.mu"),
        ("mu=0.3,0.5", "loss.mu=0.3,0.5"),
        ("loss.mu=0.5", "loss.mu=0.5"),
        ("loss=akl", "loss=akl"),
        ("train.lr=1", "train.lr=1"),
        ("name=mu", "name=mu"),
    ],
)
def test_short_keys_stand_for_the_loss(typed: str, meant: str) -> None:
    assert expand_short_key(typed) == meant


def test_flags_go_first_with_their_values_and_overrides_keep_their_order() -> None:
    words = ["loss=akl", "--config-dir", "x", "mu=1", "-m", "--cfg", "job", "seed=-1"]
    assert split_words(words) == (["--config-dir", "x", "-m", "--cfg", "job"], ["loss=akl", "mu=1", "seed=-1"])
    flags = read_flags(["-m", "-cd", "here", "--cfg", "job"])
    assert flags.multirun and flags.config_dir == "here" and flags.cfg == "job"


def test_the_last_value_of_a_key_counts_and_is_unquoted() -> None:
    words = ["run=a", "+run='b c'", "runs=d"]
    assert value_of(words, "run") == "b c"
    assert value_of(words, "name") is None
    assert key_of("++a.b=1=2") == "a.b"


def test_quoting_survives_hydras_grammar() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for value in ["plain", "it's", "a=b,c", "back\\slash'", "", [1, "x,y", None, True], 0.5, None, False, "null", "1"]:
        parsed = OverridesParser.create().parse_override(f"key={quote(value)}")
        found = parsed.value()
        found = [item.text if hasattr(item, "text") else item for item in found] if isinstance(found, list) else found
        assert getattr(found, "text", found) == value

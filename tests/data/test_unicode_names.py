"""The embedded set of Unicode names."""

import sys
import time
import unicodedata

import pytest

from kdrun.data import Example
from kdrun.data.unicode_names import names_by_number, unicode_names, unidata_version


@pytest.fixture(scope="module")
def examples():
    return unicode_names()


def test_dark_shade_is_asked_by_its_code_point_and_shown(examples):
    assert Example("Name the character U+2593.", "\u2593", ("DARK SHADE",)) in examples


@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0", reason="the count is that of Unicode 14.0 (Python 3.11)")
def test_unicode_14_gives_27757_pairs(examples):
    assert len(examples) == 27_757


def test_every_name_leads_back_to_its_character(examples):
    assert all(unicodedata.lookup(example.response) == example.input for example in examples)


def test_code_points_ascend_so_the_order_is_fixed_and_no_prompt_repeats(examples):
    code_points = [ord(example.input) for example in examples]
    assert code_points == sorted(set(code_points))
    assert all(
        int(example.instruction[len("Name the character U+") : -1], 16) == ord(example.input) for example in examples
    )


def test_the_basic_latin_letters_are_all_there_and_controls_are_not(examples):
    inputs = {example.input for example in examples}
    assert {chr(code) for code in range(0x20, 0x7F)} <= inputs
    assert not {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0), 0xD800, 0xE000]} & inputs


@pytest.mark.parametrize(
    "character",
    [
        "\u4e00",  # CJK UNIFIED IDEOGRAPH-4E00
        "\uface",  # CJK COMPATIBILITY IDEOGRAPH-FACE: its number has no digit
        "\uac00",  # HANGUL SYLLABLE GA
        "\U0001b170",  # NUSHU CHARACTER-1B170
        "\U00018b00",  # KHITAN SMALL SCRIPT CHARACTER-18B00
        "\U00018800",  # TANGUT COMPONENT-001
        "\ufe00",  # VARIATION SELECTOR-1
        "\U00013000",  # EGYPTIAN HIEROGLYPH A001
        "\u2801",  # BRAILLE PATTERN DOTS-1
        "\U00010000",  # LINEAR B SYLLABLE B008 A
    ],
)
def test_names_that_only_number_the_character_are_left_out(character):
    assert names_by_number(unicodedata.name(character), ord(character))


@pytest.mark.parametrize("character", ["A", "\u201a", "\u1100", "\u3042", "\U0001f600", "\u2673"])
def test_names_that_say_what_the_character_is_stay(character):
    # U+201A SINGLE LOW-9 QUOTATION MARK and U+2673 RECYCLING SYMBOL FOR TYPE-1 PLASTICS hold a digit and stay.
    assert not names_by_number(unicodedata.name(character), ord(character))


def test_no_enumerated_block_is_left(examples):
    names = [example.response for example in examples]
    numbered = ("IDEOGRAPH-", "NUSHU CHARACTER-", "KHITAN SMALL SCRIPT CHARACTER-", "TANGUT COMPONENT-", "SELECTOR-")
    assert not [name for name in names if any(part in name for part in numbered)]


def test_it_takes_a_second_at_most():
    start = time.process_time()
    unicode_names()
    assert time.process_time() - start < 2  # 0.25 s measured; twice the promise, for a loaded machine


def test_the_version_is_that_of_this_python():
    assert unidata_version() == unicodedata.unidata_version
    assert sys.version_info < (3, 12) or unidata_version() != "14.0.0"

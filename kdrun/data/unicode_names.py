"""The embedded set `data=unicode`: a character, answer its Unicode name. From the standard library; no download."""

import re
import sys
import unicodedata

from kdrun.data.examples import Example

# A number of three or more hexadecimal digits: a code point or a catalogue number, as in TANGUT COMPONENT-001.
_LONG_NUMBER = re.compile(r"(?=[0-9A-F]*[0-9])[0-9A-F]{3}")


def unicode_names() -> list[Example]:
    """Pairs such as "Name the character U+2593." with that character as input -> "DARK SHADE", in code point order.

    Left out are the characters without a name (controls, surrogates, private use, unassigned) and those whose name
    numbers them instead of saying what they are; see `names_by_number`. 27,757 pairs with Unicode 14.0 (Python 3.11)
    in some 0.5 s; a newer Python brings a newer Unicode and more pairs, so keep `unidata_version` with the results.
    """
    examples = []
    for code_point in range(sys.maxunicode + 1):
        character = chr(code_point)
        name = unicodedata.name(character, "")
        if name and not names_by_number(name, code_point):
            instruction = f"Name the character U+{code_point:04X}."
            examples.append(Example(instruction, character, (name,)))
    return examples


def unidata_version() -> str:
    """The version of the Unicode database that this Python carries, such as "14.0.0"."""
    return unicodedata.unidata_version


def names_by_number(name: str, code_point: int) -> bool:
    """Whether a name was made by rule or counts off a list, so that it can be known but not learnt.

    True for Hangul syllables (spelt from their parts), for names that end with their own code point (CJK, Khitan and
    Nushu), for names that end with a digit (EGYPTIAN HIEROGLYPH A001, VARIATION SELECTOR-1, BRAILLE PATTERN DOTS-12)
    and for names that hold a number of three or more hexadecimal digits (LINEAR B SYLLABLE B008 A). The last rule also
    takes 37 cuneiform signs with such a run inside a word (AB2, NINDA2).
    """
    return (
        name.startswith("HANGUL SYLLABLE ")
        or name.endswith(f"{code_point:X}")
        or name[-1].isdigit()
        or _LONG_NUMBER.search(name) is not None
    )

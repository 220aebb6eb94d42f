"""What a word is, in any script: how texts are compared, and where a word begins and ends."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Final

#: Scripts that put no spaces between words, as the inside of a character class: Thai and its neighbours, kana, Han.
UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)


def folded(text: str) -> str:
    """Return a text without what looks or means the same: case, width, ligatures, and characters without a look.

    Examples:
        >>> folded("Ｔop S\u00adECRET")
        'top secret'
    """
    if text.isascii():
        return text.lower()
    seen = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())


def whole_words(phrases: Iterable[str]) -> re.Pattern[str]:
    """Return what finds any of some phrases as whole words in a folded text.

    Spaces within a phrase match any white space. Scripts without spaces have no whole words, so there a phrase is
    found anywhere.

    Examples:
        >>> bool(whole_words(["cat"]).search("concatenate")), bool(whole_words(["cat"]).search("a cat!"))
        (False, True)
    """
    longest_first = sorted({folded(phrase).strip() for phrase in phrases}, key=len, reverse=True)
    return re.compile("|".join(_whole(phrase) for phrase in longest_first))


def _whole(phrase: str) -> str:
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    before, after = (rf"(?<!{_letter()})", rf"(?!{_letter()})")
    unspaced = re.compile(f"[{UNSPACED}]")
    return ("" if unspaced.match(phrase[0]) else before) + words + ("" if unspaced.match(phrase[-1]) else after)


@cache
def _letter() -> str:
    """Return the pattern of what continues a word: letters, digits, and marks, which some scripts write vowels with."""
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)).startswith("M"))
    return rf"(?![{UNSPACED}])[\w{marks}]"

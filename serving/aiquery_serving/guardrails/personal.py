"""Personal data in texts, found by the patterns and checksums of presidio-analyzer; nothing is downloaded.

Cards, bank accounts (of the United States, and IBAN), social security numbers, e-mail addresses and phone numbers:
numbers of the United States as they are dialled there, those of other countries with their `+`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from aiquery_serving.errors import ConfigurationError
from aiquery_serving.guardrails.words import UNSPACED

#: The most characters, white space aside, of anything that is found here and may have spaces in it.
LONGEST: Final = 48
#: A pattern that finds less certain things counts where a word that speaks of them is among the last few.
_CERTAIN: Final = 0.4
_WORDS_BEFORE: Final = 5
_CHARACTERS_BEFORE: Final = 80
# As presidio's own, but in time that grows with the text and not with its square: a local part has 64 characters.
_EMAIL: Final = r"[!#$%&'*+\-/=?^_`{|}~.\w]{1,64}+@\w++(?:-++\w++)*+(?:\.\w++(?:-++\w++)*+)++"
_POSSIBLE: Final = re.compile(r"[\d@]")
#: For the patterns a digit is a digit of any width, and a word ends where a script without spaces begins.
_WIDE: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_NOT_SPACED: Final = re.compile(f"[{UNSPACED}]")


class Finding(NamedTuple):
    """Personal data: where it is in the text, and its kind, `EMAIL_ADDRESS` for one."""

    start: int
    end: int
    kind: str


def find(text: str) -> list[Finding]:
    """Return the personal data in a text, in order and without overlaps.

    The first call takes seconds, because the library loads much: see `loaded`.

    Raises:
        ConfigurationError: presidio-analyzer is not installed.
    """
    recognizers = _recognizers()
    if not _POSSIBLE.search(text):
        return []
    legible = _NOT_SPACED.sub(" ", text.translate(_WIDE))
    return _merged(
        (result.score, Finding(result.start, result.end, result.entity_type))
        for recognizer in recognizers
        for result in recognizer.analyze(legible, recognizer.supported_entities) or ()
        if result.score >= _CERTAIN or _is_spoken_of(legible, result.start, recognizer.context or ())
    )


def masked(text: str, findings: Iterable[Finding]) -> str:
    """Return a text with what was found in it replaced by its kind.

    Examples:
        >>> masked("Ask ada@example.com.", [Finding(4, 19, "EMAIL_ADDRESS")])
        'Ask [EMAIL_ADDRESS].'
    """
    parts, done = [], 0
    for finding in findings:
        parts += [text[done : finding.start], f"[{finding.kind}]"]
        done = finding.end
    return "".join([*parts, text[done:]])


def loaded() -> bool:
    """Say whether the library has been loaded, so that `find` is quick."""
    return _recognizers.cache_info().currsize > 0


@cache
def _recognizers() -> tuple[Any, ...]:
    try:
        from presidio_analyzer import Pattern
        from presidio_analyzer import predefined_recognizers as known
    except ImportError as error:
        raise ConfigurationError(
            "Guardrails that look for personal data need presidio-analyzer, which is not installed: "
            "pip install 'aiquery[guardrails]'."
        ) from error
    # It would write numbers that it cannot read into the log, in clear.
    logging.getLogger("presidio-analyzer").addFilter(lambda record: record.levelno < logging.ERROR)
    return (
        known.CreditCardRecognizer(),
        known.UsSsnRecognizer(),
        known.IbanRecognizer(),
        _addresses(known.EmailRecognizer, [Pattern("E-mail", _EMAIL, 0.5)]),
        known.PhoneRecognizer(supported_regions=("US",)),
        known.UsBankRecognizer(),
    )


def _addresses(recognizer: Any, patterns: list[Any]) -> Any:
    """Return presidio's own recognizer of addresses, which does not ask the network for the list of domains."""
    import tldextract

    shipped = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    shipped("example.com")  # reads the list

    class Addresses(recognizer):  # type: ignore[misc]  # a class from a library that is loaded late
        def validate_result(self, pattern_text: str) -> bool:
            return bool(shipped(pattern_text).fqdn)

    return Addresses(patterns=patterns)


def _is_spoken_of(text: str, start: int, words: Sequence[str]) -> bool:
    before = text[max(0, start - _CHARACTERS_BEFORE) : start].lower().split()[-_WORDS_BEFORE:]
    return any(word.strip() in heard for word in words for heard in before)


def _merged(found: Iterable[tuple[float, Finding]]) -> list[Finding]:
    """Make one of findings that overlap: all of their text, of the most certain kind."""
    merged: list[tuple[float, Finding]] = []
    for score, finding in sorted(found, key=lambda item: (item[1].start, -item[0])):
        if merged and finding.start < merged[-1][1].end:
            best, before = merged[-1]
            kind = before.kind if best >= score else finding.kind
            merged[-1] = (max(best, score), Finding(before.start, max(before.end, finding.end), kind))
        else:
            merged.append((score, finding))
    return [finding for _, finding in merged]

"""The text of a token: made from 256 random bits, kept as a digest only, and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

_TEXT = re.compile(r"aiq_([0-9a-f]{16})_[0-9a-f]{64}", re.ASCII)
#: What the token of nobody is compared with, so that an unknown id takes as long as a known one.
_NOBODY = bytes(32)


class NewToken(NamedTuple):
    """A token as it is shown once (`text`), and what of it is kept."""

    id: str
    text: str
    digest: bytes


def new_token() -> NewToken:
    """Draw a token."""
    token_id = secrets.token_hex(8)
    text = f"aiq_{token_id}_{secrets.token_hex(32)}"
    return NewToken(token_id, text, _digest(text))


def id_of(text: str) -> str | None:
    """Return the id that a token's text carries, or None when it is no token of ours.

    Examples:
        >>> id_of(new_token().text) is None, id_of("dapi0123")
        (False, None)
    """
    found = _TEXT.fullmatch(text)
    return found[1] if found else None


def is_text_of(text: str, digest: bytes | None) -> bool:
    """Say whether a text is that of which a digest was kept; None stands for a token that nobody has."""
    return hmac.compare_digest(_digest(text), digest or _NOBODY)


def _digest(text: str) -> bytes:
    # Random bits need no slow hash: there is nothing to guess.
    return hashlib.sha256(text.encode(errors="replace")).digest()

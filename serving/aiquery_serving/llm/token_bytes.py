"""Which bytes a token stands for: one token may be a part of a character only."""

from __future__ import annotations

import json
import re
from typing import Any

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of a vocabulary's tokens. From any thread.

    Args:
        tokenizer: transformers' fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._steps = _decoding(self._backend.decoder)

    def of(self, token_id: int) -> bytes:
        """Return the bytes of a token; none of one that the vocabulary has not."""
        piece = self._backend.id_to_token(token_id)
        if piece is None or token_id in self._added:
            return (piece or "").encode()
        if "ByteLevel" in self._steps and _LETTERS.issuperset(piece):
            return bytes(map(_BYTE_OF.__getitem__, piece))
        if "ByteFallback" in self._steps and (byte := _FALLBACK.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return str(piece).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def shown(content: bytes) -> str:
    r"""Return a token's bytes as the text that log-probabilities name it by.

    Examples:
        >>> shown("é".encode()), shown("é".encode()[:1])
        ('é', 'bytes:\\xc3')
    """
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _decoding(decoder: Any) -> frozenset[str]:
    """Return the names of the steps that make text of tokens."""
    steps = json.loads(decoder.__getstate__()) if decoder else {}
    return frozenset(step["type"] for step in steps.get("decoders", [steps]) if step)


def _alphabet() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for, as GPT-2 has laid down."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _alphabet()
_LETTERS = frozenset(_BYTE_OF)

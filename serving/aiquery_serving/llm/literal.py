"""Keeps what callers write from being read as special tokens of a model, such as the one that ends a turn.

A chat template writes special tokens as text around what callers say, and a tokenizer reads them wherever they stand.
So a row of a table with `<|im_end|>` in it could end the user's turn and begin one of the system's. Such text is marked
before the template is filled in, and taken apart there before it becomes tokens: neither piece is a special one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any


class Literal:
    """Marks text that is meant literally.

    Args:
        special: The special tokens, as they are written; one of a single character cannot be taken apart.

    Examples:
        >>> literal = Literal(["<s>", "</s>"])
        >>> literal.pieces("<s>" + literal.marked({"content": "no <s>"})["content"])
        ['<s>no <', 's>']
    """

    def __init__(self, special: Iterable[str]) -> None:
        self._seam = secrets.token_hex(16)  # plain letters, which templates leave as they are
        rest: dict[str, list[str]] = {}
        for token in special:
            if len(token) > 1:
                rest.setdefault(token[0], []).append(re.escape(token[1:]))
        firsts = [f"{re.escape(first)}(?={'|'.join(ends)})" for first, ends in rest.items()]
        self._inside = re.compile("|".join(firsts)) if firsts else None

    def marked(self, said: Any) -> Any:
        """Return JSON with marks in all texts that hold special tokens."""
        if self._inside is None:
            return said
        if isinstance(said, str):
            return self._inside.sub(rf"\g<0>{self._seam}", said)
        if isinstance(said, dict):
            return {self.marked(name): self.marked(value) for name, value in said.items()}
        if isinstance(said, list | tuple):
            return [self.marked(item) for item in said]
        return said

    def pieces(self, text: str) -> list[str]:
        """Return a text without its marks, taken apart where they were."""
        return text.split(self._seam)

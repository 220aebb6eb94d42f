"""Embeddings: from `input` to tokens, and from vectors to the REST API's list of them (contract D.4)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.foundation.fields import unwrapped, whole, word, wrong
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.llm.pooling import shortened

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aiquery_serving.llm.instructions import Instructions
    from aiquery_serving.llm.prompting import Prompter


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """A request for embeddings.

    Attributes:
        texts: The tokens of each input.
        dimensions: Numbers of each embedding; None for as many as the model gives.
        base64: They are wanted as little-endian float32 in base64.
    """

    texts: list[list[int]]
    dimensions: int | None
    base64: bool

    @property
    def tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(map(len, self.texts))

    def written(self, vectors: NDArray[np.float32]) -> list[Any]:
        """Return embeddings of shape (texts, dimensions of the model) as they are wanted: texts, or NumPy's rows."""
        wanted = vectors if self.dimensions is None else shortened(vectors, self.dimensions)
        if self.base64:
            return [b64encode(vector.astype("<f4").tobytes()).decode() for vector in wanted]
        return [*wanted]


def ask(body: Mapping[str, Any], prompter: Prompter, *, instructions: Instructions, dimensions: int) -> Embeddings:
    """Return what an embeddings request comes to.

    Args:
        body: The request's body.
        prompter: Knows the tokens of texts.
        instructions: The model's own.
        dimensions: Numbers of the model's embeddings.

    Raises:
        InvalidRequestError: A field is wrong.
    """
    asked = unwrapped(body)
    instruction = asked.get("instruction")
    if not isinstance(instruction, str | None):
        raise wrong("instruction", instruction, "a string")
    items = _inputs(asked.get("input"))
    words = [instructions.apply(item, instruction) for item in items if isinstance(item, str)]
    read = iter(prompter.texts(words))
    texts = [next(read) if isinstance(item, str) else _tokens(item, prompter) for item in items]
    if empty := [place for place, text in enumerate(texts) if not text]:
        raise InvalidRequestError(f"The request's 'input' has no tokens in place {empty[0]}: leave empty texts out.")
    return Embeddings(
        texts=texts,
        dimensions=whole(asked, "dimensions", 1, dimensions),
        base64=word(asked, "encoding_format", "float", "base64") == "base64",
    )


def _inputs(value: Any) -> list[Any]:
    """Return texts, or lists of token numbers."""
    match value:
        case str():
            return [value]
        case [int(), *_]:
            return [value]
        case [_, *_]:
            return list(value)
    raise wrong("input", value, "a string, or a list of strings")


def _tokens(item: Any, prompter: Prompter) -> list[int]:
    known = range(len(prompter.tokenizer))
    if isinstance(item, list) and all(type(token) is int and token in known for token in item):
        return item
    raise wrong("input", item, f"texts, or lists of token numbers from 0 to {known[-1]}")

"""What a request comes to: what the engine is asked, and who writes each of its answers down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aiquery_serving.entities.foundation.sampling import of_choice
from aiquery_serving.llm.interface import GenerationRequest

if TYPE_CHECKING:
    from aiquery_serving.llm.interface import Piece, Sampling
    from aiquery_serving.messages import Json


class Choice(Protocol):
    """Writes one answer in the REST API's words: `whole`, or in chunks: `begin` first, then `feed` piece by piece."""

    def whole(self, piece: Piece) -> Json:
        """Return the choice of an answer that is all there."""
        ...

    def begin(self) -> list[Json]:
        """Return the choices of the chunks before anything is said."""
        ...

    def feed(self, piece: Piece) -> list[Json]:
        """Return the choices of the chunks that a piece completes; of the last piece, with why it ended."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a language model.

    Attributes:
        generations: What the engine is to give: all choices of the first prompt, then of the next.
        choices: Who writes each of them down.
        per_prompt: Choices of one prompt.
    """

    generations: list[GenerationRequest]
    choices: list[Choice]
    per_prompt: int


def generations_of(
    prompts: Sequence[list[int]], sampling: Sampling, choices: int, *, batch: bool
) -> list[GenerationRequest]:
    """Return what an engine is asked for some prompts: each as often as it has choices."""
    return [
        GenerationRequest(token_ids=prompt, sampling=of_choice(sampling, place), batch=batch)
        for prompt in prompts
        for place in range(choices)
    ]

"""What the dialects of embeddings have in common: no pieces, and no headers that teach anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import LimitHint

if TYPE_CHECKING:
    from aiquery_serving.entities.external.limit_hints import Headers


class WholeAnswers:
    """The half of an `entity.Dialect` that is the same for all embeddings."""

    __slots__ = ()

    def reader(self, _body: Mapping[str, Any], _now: float) -> NoReturn:
        """Refuse.

        Raises:
            InvalidRequestError: Always.
        """
        raise InvalidRequestError("Embeddings cannot be streamed: leave out 'stream'.")

    def hint(self, _headers: Headers, _now: float) -> LimitHint | None:
        """Return None: the headers teach nothing about limits."""
        return None

"""Makes answers fulfil JSON schemas: of each next token, which ones still can.

llguidance follows the grammar. Spaces between JSON's parts are allowed, one at a time: a model that likes white space
would otherwise spend all its tokens on it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from aiquery_serving.errors import ConfigurationError, InvalidRequestError, ModelError
from aiquery_serving.llm.schema_trial import SchemaTrial

#: Grammars that are kept, and how long their schemas may be together.
_KEPT, _KEPT_CHARACTERS = 256, 4_000_000
_SPACING = {"whitespace_flexible": True, "whitespace_pattern": " ?"}


class Grammars:
    """The JSON schemas that a model's answers are to fulfil, each compiled once. From any thread.

    Args:
        tokenizer: transformers' fast tokenizer of the model.
        vocabulary: The number of logits.
        ends: Tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Iterable[int]) -> None:
        self._made_of = (tokenizer, vocabulary, [*ends] or None)
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._trial = SchemaTrial()

    def prepare(self) -> None:
        """Do now what takes a moment for a large vocabulary, unless llguidance is not installed."""
        with suppress(ConfigurationError):
            _ = self._tokenizer, self._executor

    def matcher(self, schema: str) -> Any:
        """Return what follows one answer: an `LLMatcher` at its beginning.

        Raises:
            ConfigurationError: llguidance is not installed.
            InvalidRequestError: The schema is none, says what cannot be guaranteed, or takes too long to compile.
        """
        compiled = self._compiled.get(schema) or self._compile(schema)
        with self._lock:
            self._compiled[schema] = compiled
            self._compiled.move_to_end(schema)
            while len(self._compiled) > 1 and self._are_too_many():
                self._compiled.popitem(last=False)
        return compiled.deep_copy()

    def close(self) -> None:
        """End the process in which schemas are tried, if there is one."""
        self._trial.close()

    def _are_too_many(self) -> bool:
        return len(self._compiled) > _KEPT or sum(map(len, self._compiled)) > _KEPT_CHARACTERS

    def allowed(self, matchers: Sequence[Any], vocabulary: int) -> Any:
        """Return which tokens may come next: a boolean tensor, shape (matchers, vocabulary)."""
        import numpy as np
        import torch
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        bits = allocate_token_bitmask(len(matchers), vocabulary)
        fill_next_token_bitmask_par(self._executor, [*zip(matchers, range(len(matchers)), strict=True)], bits)
        flags = np.unpackbits(bits.view(np.uint8), axis=1, count=vocabulary, bitorder="little")
        return torch.from_numpy(flags.view(np.bool_))

    def _compile(self, schema: str) -> Any:
        matchers = _llguidance().LLMatcher
        self._trial.check(schema)
        try:
            grammar = matchers.grammar_from_json_schema(schema, overrides=_SPACING)
        except ValueError as error:
            raise InvalidRequestError(f"The JSON schema of the answer is none: {error}") from error
        matcher = matchers(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidRequestError(f"The JSON schema of the answer cannot be followed: {matcher.get_error()}")
        return matcher

    @cached_property
    def _tokenizer(self) -> Any:
        _llguidance()
        from llguidance.hf import from_tokenizer

        tokenizer, vocabulary, ends = self._made_of
        if len(tokenizer) > vocabulary:
            raise ModelError(
                f"The tokenizer has {len(tokenizer)} tokens, and the model knows {vocabulary}: they do not fit."
            )
        return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=ends)

    @cached_property
    def _executor(self) -> Any:
        return _llguidance().LLExecutor()


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ConfigurationError("Answers by a JSON schema take llguidance: pip install 'aiquery[llm]'.") from error
    return llguidance

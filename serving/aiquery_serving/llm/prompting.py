"""From text to tokens and back: a model's tokenizer and its chat template.

Texts go through the Rust tokenizer alone, which any number of threads may use at once; transformers' own calls set
its truncation and padding every time and would get into each other's way.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from aiquery_serving.errors import ConfigurationError, InvalidRequestError, ModelError
from aiquery_serving.llm.conversation import as_conversation, begun
from aiquery_serving.llm.literal import Literal
from aiquery_serving.llm.model_files import CHAT
from aiquery_serving.llm.token_bytes import TokenBytes, shown

if TYPE_CHECKING:
    from aiquery_serving.llm.model_files import ModelFiles
    from aiquery_serving.llm.settings import EngineSettings
    from aiquery_serving.messages import Json

_PROBE = "a b c"


class Prompter:
    """Makes prompts of one model. From any thread.

    Args:
        tokenizer: transformers' fast tokenizer, for engines.
        system_prompt: What a conversation without a system message begins with.
    """

    def __init__(self, tokenizer: Any, *, system_prompt: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self._backend = tokenizer.backend_tokenizer
        self._bytes = TokenBytes(tokenizer)
        self._literal = Literal(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._takes_system = bool(tokenizer.chat_template) and self._shows_system()

    @classmethod
    def load(cls, files: ModelFiles, settings: EngineSettings) -> Self:
        """Read a model's tokenizer.

        Raises:
            ConfigurationError: transformers is not installed.
            ModelError: There is no fast tokenizer, or no chat template for a model that is to chat.
        """
        prompt = files.system_prompt if settings.system_prompt is None else settings.system_prompt
        prompter = cls(_tokenizer(files), system_prompt=prompt)
        if files.task == CHAT:
            prompter._check_template(files)
        return prompter

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] | None = None,
        system_prompt: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the prompt of a conversation, up to where the assistant is to go on.

        Args:
            messages: As in the REST API (contract D.2). What reads like a special token in them is text.
            tools: Functions that the model may call, as in the REST API.
            system_prompt: What it begins with if it has no system message; None for the model's own.
            extra: More that the template may know, such as `reasoning_effort`.

        Raises:
            InvalidRequestError: A message has not the right form, or the template refuses the conversation.
        """
        prompt = self.system_prompt if system_prompt is None else system_prompt
        conversation = as_conversation(messages)
        try:
            conversation = begun(self._literal.marked(conversation), prompt, takes_system=self._takes_system)
            text = self._rendered(conversation, self._literal.marked(tools), extra or {})
        except Exception as error:  # a template may trip over anything that it is given
            raise InvalidRequestError(f"The model's chat template refuses the conversation: {error}") from error
        return self._tokens(self._literal.pieces(text), raw=True)  # the template writes special tokens itself

    def text(self, prompt: str, *, raw: bool = False) -> list[int]:
        """Return the tokens of a text, between the special tokens that the tokenizer adds unless it is `raw`.

        Raises:
            InvalidRequestError: The text is not Unicode.
        """
        return self._tokens([prompt], raw=raw)

    def texts(self, prompts: Sequence[str], *, raw: bool = False) -> list[list[int]]:
        """Return the tokens of several texts, made on all processors.

        Raises:
            InvalidRequestError: A text is not Unicode.
        """
        return [encoded.ids for encoded in self._encoded(prompts, raw=raw)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without the special ones."""
        text: str = self._backend.decode([*ids], skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        r"""Return the text of one token; one that is only a part of a character reads `bytes:\xe4\xbd`."""
        return shown(self.token_bytes(token_id))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token, which may be a part of a character; none of one without text."""
        return self._bytes.of(token_id)

    def _tokens(self, pieces: list[str], *, raw: bool) -> list[int]:
        return [token for piece in self._encoded(pieces, raw=raw) for token in piece.ids]

    def _encoded(self, texts: Sequence[str], *, raw: bool) -> list[Any]:
        try:  # in a batch, as that lets other threads run meanwhile
            encoded: list[Any] = self._backend.encode_batch_fast([*texts], add_special_tokens=not raw)
        except TypeError as error:
            raise InvalidRequestError("A text of the request holds half of a surrogate pair: send Unicode.") from error
        return encoded

    def _rendered(self, conversation: list[Json], tools: Sequence[Json] | None, extra: Mapping[str, Any]) -> str:
        own = inspect.signature(self.tokenizer.apply_chat_template).parameters if extra else {}
        more = {name: value for name, value in extra.items() if name not in own}  # nobody replaces the template
        given = [*tools] if tools else None
        text: str = self.tokenizer.apply_chat_template(
            conversation, tools=given, tokenize=False, add_generation_prompt=True, **more
        )
        return text

    def _check_template(self, files: ModelFiles) -> None:
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"The model in {files.tokenizer} is to chat and has no chat template: put one into chat_template of"
                " its tokenizer_config.json or into chat_template.jinja, or serve it for llm/v1/completions."
            )
        try:
            self._rendered([{"role": "user", "content": _PROBE}], None, {})
        except Exception as error:
            raise ModelError(f"The chat template of the model in {files.tokenizer} does not work: {error}") from error

    def _shows_system(self) -> bool:
        conversation = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}]
        try:
            return _PROBE in self._rendered(conversation, None, {})
        except Exception:  # noqa: BLE001 - the way in which templates say no
            return False


def _tokenizer(files: ModelFiles) -> Any:
    try:
        with _quiet():
            from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigurationError(
            f"transformers cannot be imported ({error}): pip install 'aiquery[llm]' has versions that fit."
        ) from error
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(files.tokenizer, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises what it likes
        raise ModelError(f"The tokenizer in {files.tokenizer} cannot be loaded: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"The tokenizer in {files.tokenizer} is no fast one: save it with its tokenizer.json.")
    tokenizer.backend_tokenizer.no_truncation()  # files of embedding models ask for both
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from talking about files that are fine."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

"""Runs an embedding model of the transformers library: tokens in, embeddings out, on the thread that asks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aiquery_serving.batching import halves
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.llm.model_files import ModelFiles
from aiquery_serving.llm.model_json import read_json
from aiquery_serving.llm.pooling import Pooling, read_pooling
from aiquery_serving.llm.pretrained import pretrained
from aiquery_serving.llm.quiet import quiet
from aiquery_serving.llm.settings import AUTO, EngineSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Context of a model that does not count positions.
_USUAL_CONTEXT = 512
#: Hidden states that differ by less than this part of them are the same, but for rounding.
_ALIKE = 0.01


class Encoder:
    """A loaded embedding model.

    Args:
        model: One of transformers', which gives a hidden state for each token.
        pooling: Makes one embedding of a text's hidden states.
        context_length: The most tokens of one text.
        padding: The token that shorter texts are filled up with.

    Attributes:
        device: Where it computes.
        dimensions: Numbers of one embedding.
        vocabulary: How many tokens it knows.
    """

    def __init__(self, model: Any, pooling: Pooling, *, context_length: int, padding: int = 0) -> None:
        self._model, self._pooling, self._padding = model, pooling, padding
        self.context_length = context_length
        self.device = str(model.device)
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.dimensions = self([[0]]).shape[1]  # what does not run at all shows now

    def __call__(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the embeddings of tokenized texts in order: shape (texts, dimensions), of length 1 each.

        Where a GPU's memory does not suffice, half of the texts run at a time.
        """
        import torch

        try:
            return self._run(texts)
        except torch.OutOfMemoryError:
            if len(texts) == 1:
                raise
        torch.cuda.empty_cache()
        return np.concatenate([self([texts[row] for row in half]) for half in halves(range(len(texts)))])

    def _run(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        import torch

        lengths = np.array([len(text) for text in texts])
        ids = np.full((len(texts), lengths.max()), self._padding)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
        with torch.inference_mode():
            tokens, counts = (torch.from_numpy(array).to(self.device) for array in (ids, lengths))
            mask = (torch.arange(tokens.shape[1], device=self.device) < counts[:, None]).long()
            hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
            embeddings = self._pooling(hidden, counts)
        return embeddings.cpu().numpy()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give the memory back."""
        import torch

        del self._model, self._pooling
        gc.collect()  # modules refer to each other
        if self.device != "cpu":
            torch.cuda.empty_cache()


def load_encoder(files: ModelFiles, settings: EngineSettings, tokenizer: Any, say: Callable[[str], None]) -> Encoder:
    """Load an embedding model; `say` is told how it is run.

    Raises:
        ConfigurationError: PyTorch is not installed, or the settings do not fit the model or the machine.
        ModelError: The files hold no model, or none that can be loaded without running code of theirs.
    """
    model = _loaded(files, settings, say)
    names = (files.model_type, files.metadata.get("model_type", ""), files.config.get("_name_or_path", ""))
    pooling = read_pooling(files.model, is_causal=_is_causal(model), device=str(model.device), names=names)
    context_length = _context_length(model, files, settings, tokenizer)
    encoder = Encoder(model, pooling, context_length=context_length, padding=model.config.pad_token_id or 0)
    kind = str(model.dtype).removeprefix("torch.")
    say(
        f"{files.model_type} embeds on {encoder.device} in {kind}: {'+'.join(pooling.modes)} of up to"
        f" {context_length} tokens, {encoder.dimensions} dimensions"
    )
    return encoder


def _loaded(files: ModelFiles, settings: EngineSettings, say: Callable[[str], None]) -> Any:
    """Return the model where it is to compute; on a GPU in the numbers that it is stored in, unless asked."""
    try:
        import torch

        from aiquery_serving.llm import lora
        from aiquery_serving.llm.weights import choose_device
    except ImportError as error:
        raise ConfigurationError("Language models of your own take PyTorch: pip install 'aiquery[llm]'.") from error
    device = choose_device(settings)
    usual = "float32" if device == "cpu" else AUTO
    with quiet():
        model = _pretrained(files, usual if settings.dtype == AUTO else settings.dtype)
        if adapter := settings.adapter or files.adapter:
            lora.merge(model, Path(adapter))
            say(f"the LoRA adapter in {adapter} is merged in")
        return model.to(torch.device(device)).eval()


def _pretrained(files: ModelFiles, dtype: str) -> Any:
    import transformers

    has_decoder = files.config.get("is_encoder_decoder")
    architectures = transformers.AutoModelForTextEncoding if has_decoder else transformers.AutoModel
    model = pretrained(architectures, files.model, dtype, unused="pooler.")  # pooling is ours
    model.config.use_cache = False
    return model


def _is_causal(model: Any) -> bool:
    """Say whether tokens see only those before them: whether it is all the same to one that another comes behind."""
    import torch

    some = model.get_input_embeddings().num_embeddings // 2
    tokens = torch.tensor([[some, some - 1]], device=model.device)
    with torch.inference_mode():
        pair, alone = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 0].float()
            for ids in (tokens, tokens[:, :1])
        )
    return bool((pair - alone).norm() < _ALIKE * alone.norm())


def _context_length(model: Any, files: ModelFiles, settings: EngineSettings, tokenizer: Any) -> int:
    """Return the most tokens of a text: what is asked for, or what its makers say, within what the model can."""
    asked = settings.context_length
    most = _positions(model) or max(asked or 0, _USUAL_CONTEXT)
    if asked and asked > most:
        raise ConfigurationError(f"AIQUERY_CONTEXT_LENGTH is {asked}, and the model in {files.model} takes {most}.")
    return asked or min(most, _declared_length(files) or tokenizer.model_max_length)


def _declared_length(files: ModelFiles) -> int | None:
    """Read `max_seq_length` from what sentence-transformers keeps, whatever kind of model the file is named for."""
    declared = map(read_json, sorted(files.model.glob("sentence_*_config.json")))
    return next((length for found in declared if (length := found.get("max_seq_length"))), None)


def _positions(model: Any) -> int | None:
    """Return how many positions a model has; some begin to count behind the number of the padding."""
    most: int | None = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return most if most is None or padding is None else most - padding - 1

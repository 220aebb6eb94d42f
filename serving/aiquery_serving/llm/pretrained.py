"""Reads the weights of one of transformers' models: from safetensors alone, all of them, and running nobody's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiquery_serving.errors import ModelError


def pretrained(architectures: Any, folder: Path, dtype: Any, *, unused: str | None = None) -> Any:
    """Return a model in a folder.

    Args:
        architectures: transformers' class that chooses the model's own, such as `AutoModel`.
        folder: Where its files are.
        dtype: The type of its numbers.
        unused: What the names of those weights begin with that may be missing.

    Raises:
        ModelError: It cannot be read, or some of its weights would be random.
    """
    try:
        model, found = architectures.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises what it likes for files that others wrote
        why = "its weights have not the shapes of its config.json" if "mismatched_sizes" in str(error) else error
        raise ModelError(f"The model in {folder} cannot be loaded: {why}") from error
    missing = sorted(name for name in found["missing_keys"] if not (unused and name.startswith(unused)))
    if missing:
        raise ModelError(
            f"The model in {folder} cannot be loaded: its files lack weights ({len(missing)}, such as {missing[0]})."
        )
    return model

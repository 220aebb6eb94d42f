"""Models by their name on a hub of Hugging Face's kind, kept in the cache that its other tools use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from aiquery_serving.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: What says what a model is and how it reads text. Nothing that would have to be run.
_DESCRIPTION: Final = ("*.json", "*.jinja", "*.txt", "*.model")
_WEIGHTS: Final = "*.safetensors"


def is_name(text: str) -> bool:
    """Say whether a text can be a model's name on a hub.

    Examples:
        >>> is_name("org/model-1.5"), is_name("./model"), is_name("catalog.schema.model")
        (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def fetch(name: str, revision: str = "", *, weights: bool = True) -> Path:
    """Return the folder with a model's files, downloaded where the cache has them not.

    Args:
        name: The model, `organisation/model`.
        revision: A branch, a tag or a commit; empty for the main branch.
        weights: The whole model; else only the small files that say what it is.

    Raises:
        ConfigurationError: huggingface_hub is not installed, or the model cannot be fetched; the message says why.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigurationError(
            f"'{name}' is a model's name on a hub, which takes huggingface_hub: pip install 'aiquery[llm]'."
        ) from error
    patterns = [*_DESCRIPTION, _WEIGHTS] if weights else [*_DESCRIPTION]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the network's errors are those of whichever HTTP client it uses
        raise ConfigurationError(_sentence(name, revision, error)) from error


def _sentence(name: str, revision: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"The model '{name}'{f' at revision {revision!r}' if revision else ''} cannot be fetched from the hub:"
        f" {reason.rstrip('.')}. Check its name, HF_TOKEN if it is not public, and HF_HUB_OFFLINE; or download it"
        " elsewhere, and serve its folder."
    )

"""Keeps transformers from writing progress and advice to the terminal while it loads what is fine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers speak of errors alone, for a while."""
    from transformers.utils import logging as talk

    logger, bars = logging.getLogger("transformers"), talk.is_progress_bar_enabled()
    before = logger.level
    logger.setLevel(logging.ERROR)
    talk.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars:
            talk.enable_progress_bar()

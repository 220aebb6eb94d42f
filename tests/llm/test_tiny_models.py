"""The models of the tests are what they are said to be."""

from __future__ import annotations

import tiny_lessons
import tiny_models


def test_the_trained_model_is_sure_of_every_lesson(trained_llama):
    """So sure that rounding changes no answer: each right token is well ahead of the next."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(trained_llama)
    rows, wanted = tiny_models._rows(AutoTokenizer.from_pretrained(trained_llama), tiny_lessons.lessons())
    with torch.inference_mode():
        logits = model(input_ids=rows).logits[:, :-1]
    answered = wanted[:, 1:] != -100
    (best, second), chosen = logits[answered].topk(2).values.T, logits[answered].argmax(-1)
    assert torch.equal(chosen, wanted[:, 1:][answered])
    assert (best - second).min() > 2

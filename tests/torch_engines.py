"""Engines over tiny models, and what transformers' own `generate` says in their place."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM

from aiquery_serving.llm import model_files, weights
from aiquery_serving.llm.interface import GenerationRequest, Sampling
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.settings import EngineSettings
from aiquery_serving.llm.torch_engine import TorchEngine


class Tiny:
    """A model on disk, loaded once for the engine and once as it is."""

    def __init__(self, folder, **settings):
        self.files = model_files.find(folder, task="llm/v1/completions")
        self.settings = EngineSettings(device="cpu", **settings)
        self.prompter = Prompter.load(self.files, self.settings)
        self.loaded = weights.load(self.files, self.settings, lambda _: None)
        self.plain = AutoModelForCausalLM.from_pretrained(self.files.model, dtype=torch.float32).eval()

    @contextmanager
    def engine(self, *, slots=8192, **settings):
        engine = TorchEngine(self.loaded, self.prompter, slots=slots, **settings)
        try:
            yield engine
        finally:
            engine.close()

    def greedy(self, prompt, count):
        """Return the tokens that `generate` gives."""
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = self.plain.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
            )
        return out[0, len(prompt) :].tolist()

    def logprobs(self, tokens):
        """Return the log-probabilities behind every token: shape (tokens, vocabulary)."""
        with torch.inference_mode():
            return self.plain(torch.tensor([tokens])).logits[0].log_softmax(-1)


def ask(prompt, count=24, *, batch=False, **sampling):
    sampling = {"temperature": 0.0, "logprobs": True} | sampling
    return GenerationRequest(token_ids=prompt, sampling=Sampling(max_tokens=count, **sampling), batch=batch)


class Said:
    """An answer that has come."""

    def __init__(self, pieces, usage):
        self.pieces, self.usage = pieces, usage
        self.text = "".join(piece.text for piece in pieces)
        self.logprobs = [logprob for piece in pieces for logprob in piece.logprobs]
        self.tokens = [logprob.token_id for logprob in self.logprobs]
        self.finish = pieces[-1].finish_reason


async def said(engine, request, *, stream=False):
    generation = engine.submit(request, stream=stream)
    return Said([piece async for piece in generation], generation.usage)


def answers(engine, requests, *, stream=False):
    """Ask for everything at once; returns what was said, or what went wrong."""

    async def everything():
        asked = [asyncio.ensure_future(said(engine, request, stream=stream)) for request in requests]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)

    return asyncio.run(everything())

"""Chooses the next tokens of many sequences at once from their logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.llm.grammar import Grammars
from aiquery_serving.llm.interface import Sampling, TokenLogprob

#: Below it, dividing by a temperature would overflow; it is as good as 0.
_COLDEST = 1e-3
#: How many of the likeliest tokens are looked at first for those that are together likely enough.
_LIKELY = 256
#: In the place of a token where the model has computed no number for the likeliest.
NO_TOKEN = -1


class Chooser:
    """How one sequence's tokens are chosen, and what that depends on of its past.

    Attributes:
        sampling: The settings.
        matcher: Follows the schema of the answer, if it has one.
    """

    def __init__(self, sampling: Sampling, device: str, matcher: Any = None) -> None:
        self.sampling, self.matcher = sampling, matcher
        self.generator: Any = None
        if sampling.seed is not None and sampling.temperature:
            self.generator = torch.Generator(device).manual_seed(sampling.seed % 2**63)
        self._penalised = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._given: Counter[int] = Counter()

    def accept(self, token: int) -> None:
        """Note the token that was chosen."""
        if self._penalised:
            self._given[token] += 1
        if self.matcher is not None:
            self.matcher.consume_token(token)
            self.check()

    def check(self) -> None:
        """Let pass while the schema can be followed.

        Raises:
            InvalidRequestError: That has become too complex; what it allows means nothing from here on.
        """
        if self.matcher is not None and self.matcher.is_error():
            reason = self.matcher.get_error().partition("\n")[0]
            raise InvalidRequestError(f"The JSON schema of the answer cannot be followed any further: {reason}.")

    @property
    def complete(self) -> bool:
        """Whether the schema allows nothing more."""
        return self.matcher is not None and self.matcher.is_stopped()

    def shifts(self) -> Iterator[tuple[int, float]]:
        """Yield tokens, and what their logits change by."""
        yield from self.sampling.logit_bias.items()
        for token, times in self._given.items():
            yield token, -(self.sampling.frequency_penalty * times + self.sampling.presence_penalty)


class Sampler:
    """Chooses tokens for the sequences of one engine; belongs to its thread.

    Args:
        device: Where the logits are.
        grammars: What made the choosers' matchers.
    """

    def __init__(self, device: str, grammars: Grammars) -> None:
        self._grammars = grammars
        self._noise = torch.Generator(device)
        self._noise.seed()

    def choose(self, logits: Any, choosers: Sequence[Chooser]) -> tuple[list[int], dict[int, TokenLogprob]]:
        """Choose one token for each sequence.

        Args:
            logits: Shape (sequences, vocabulary); it is overwritten.
            choosers: One per sequence.

        Returns:
            The tokens, or `NO_TOKEN`, and by row number how likely they were, of those who want to know.
        """
        logits = logits.float()
        asked = [row for row, chooser in enumerate(choosers) if chooser.sampling.logprobs]
        raw = logits[asked].log_softmax(-1) if asked else None
        self._shift(logits, choosers)
        self._restrict(logits, choosers)
        hot = [row for row, chooser in enumerate(choosers) if chooser.sampling.temperature]
        best, chosen = logits.max(-1)
        if hot:
            chosen[hot] = self._draw(logits[hot], [choosers[row] for row in hot])
        tokens: list[int] = chosen.masked_fill_(~best.isfinite(), NO_TOKEN).tolist()
        if raw is None:
            return tokens, {}
        said = _logprobs(raw, [tokens[row] for row in asked], [choosers[row].sampling.top_logprobs for row in asked])
        return tokens, dict(zip(asked, said, strict=True))

    def _shift(self, logits: Any, choosers: Sequence[Chooser]) -> None:
        shifts = [(row, *shift) for row, chooser in enumerate(choosers) for shift in chooser.shifts()]
        if shifts:
            rows, tokens, by = zip(*shifts, strict=True)
            where = torch.tensor([rows, tokens], device=logits.device)
            logits.index_put_((*where,), torch.tensor(by, device=logits.device), accumulate=True)

    def _restrict(self, logits: Any, choosers: Sequence[Chooser]) -> None:
        """Leave only tokens that schemas allow."""
        rows = [row for row, chooser in enumerate(choosers) if chooser.matcher is not None]
        if rows:
            allowed = self._grammars.allowed([choosers[row].matcher for row in rows], logits.shape[1])
            logits[rows] = logits[rows].masked_fill_(~allowed.to(logits.device), -torch.inf)

    def _draw(self, logits: Any, choosers: Sequence[Chooser]) -> Any:
        """Draw tokens as likely as they are: the largest of the logits with Gumbel noise on them."""
        settings = [chooser.sampling for chooser in choosers]
        logits /= _column([max(sampling.temperature, _COLDEST) for sampling in settings], logits)
        _keep_top_k(logits, [sampling.top_k for sampling in settings])
        _keep_top_p(logits, [sampling.top_p for sampling in settings])
        noise = torch.empty_like(logits)
        if any(chooser.generator is None for chooser in choosers):
            noise.exponential_(generator=self._noise)
        for row, chooser in enumerate(choosers):
            if chooser.generator is not None:
                noise[row].exponential_(generator=chooser.generator)
        return (logits - noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_()).argmax(-1)


def _keep_top_k(logits: Any, counts: Sequence[int]) -> None:
    size = logits.shape[1]
    if any(0 < count < size for count in counts):
        wanted = [min(count, size) if count > 0 else size for count in counts]
        largest = max((count for count in wanted if count < size), default=1)
        values = logits.topk(largest).values
        places = torch.tensor([min(count, largest) - 1 for count in wanted], device=logits.device)[:, None]
        floors = values.gather(-1, places)
        floors[[row for row, count in enumerate(wanted) if count == size]] = -torch.inf
        logits.masked_fill_(logits < floors, -torch.inf)


def _keep_top_p(logits: Any, shares: Sequence[float]) -> None:
    """Keep the likeliest tokens up to the one with which they are together likely enough."""
    if all(share >= 1 for share in shares):
        return
    wanted, total = _column(shares, logits), logits.logsumexp(-1, keepdim=True)
    for size in (min(_LIKELY, logits.shape[1]), logits.shape[1]):  # sorting a whole vocabulary is slow
        values = logits.topk(size).values
        likely = (values - total).exp_()
        before = likely.cumsum(-1) - likely
        if size == logits.shape[1] or bool((before[:, -1:] >= wanted).logical_or_(wanted >= 1).all()):
            break
    last = ((before < wanted).sum(-1, keepdim=True) - 1).clamp_min_(0)
    floors = values.gather(-1, last).masked_fill_(wanted >= 1, -torch.inf)
    logits.masked_fill_(logits < floors, -torch.inf)


def _logprobs(raw: Any, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    own = raw.gather(-1, torch.tensor(tokens, device=raw.device).clamp_min_(0)[:, None])[:, 0].tolist()
    top = raw.topk(min(max(counts), raw.shape[1]))
    likeliest = zip(top.indices.tolist(), top.values.tolist(), counts, strict=True)
    pairs = [tuple(zip(ids[:count], values[:count], strict=True)) for ids, values, count in likeliest]
    return [TokenLogprob(*said) for said in zip(tokens, own, pairs, strict=True)]


def _column(numbers: Sequence[float], like: Any) -> Any:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None]

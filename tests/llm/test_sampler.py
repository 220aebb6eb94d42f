"""Which tokens are drawn from logits, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed: sampling is NOT tested")

from aiquery_serving.llm.interface import Sampling  # noqa: E402
from aiquery_serving.llm.sampler import Chooser, Sampler  # noqa: E402

SIZE = 12


@pytest.fixture(scope="module")
def sampler():
    return Sampler("cpu", grammars=None)


def chooser(**sampling) -> Chooser:
    return Chooser(Sampling(**sampling), "cpu")


def drawn(sampler, logits, count=400, **sampling):
    """Return the tokens of many sequences that have the same logits."""
    tokens, _ = sampler.choose(torch.tensor([logits] * count), [chooser(**sampling) for _ in range(count)])
    return tokens


def likely_enough(logits, top_k, top_p):
    """Return the tokens that may be drawn, by the definitions."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: top_k or None]
    shares = torch.tensor([logits[token] for token in order]).softmax(0).tolist()
    kept, total = set(), 0.0
    for token, share in zip(order, shares, strict=True):
        if total >= top_p - 1e-6 and kept:
            break
        kept.add(token)
        total += share
    return kept


@settings(max_examples=40, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=SIZE, max_size=SIZE, unique=True),
    top_k=st.sampled_from([0, 1, 2, 5, SIZE, 99]),
    top_p=st.sampled_from([1e-6, 0.3, 0.6, 0.95, 1.0]),
)
def test_nothing_is_drawn_but_what_is_likely_enough(logits, top_k, top_p):
    logits = [logit / 10 for logit in logits]
    got = set(drawn(Sampler("cpu", grammars=None), logits, 60, top_k=top_k, top_p=top_p))
    assert got <= likely_enough(logits, top_k, top_p)


@pytest.mark.parametrize(
    ("share", "kept"), [(0.49, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2}), (0.96, {0, 1, 2, 3})]
)
def test_the_token_with_which_the_share_is_reached_is_kept(sampler, share, kept):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert set(drawn(sampler, logits, top_p=share)) == kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(sampler, temperature):
    logits = [0.0, 1.0, -1.0, 2.0]
    tokens = torch.tensor(drawn(sampler, logits, 8_000, temperature=temperature))
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    wanted = (torch.tensor(logits) / temperature).softmax(0)
    assert shares.tolist() == pytest.approx(wanted.tolist(), abs=0.03)


def test_of_a_large_vocabulary_as_many_are_kept_as_it_takes(sampler):
    nearly_flat = [-token / 1e4 for token in range(1000)]
    tokens = drawn(sampler, nearly_flat, 3000, top_p=0.9)
    assert 750 < len(set(tokens)) < 910
    assert max(tokens) < 910
    assert set(drawn(sampler, [0.0] * 999 + [9.5], 300, top_p=0.5)) == {999}


@pytest.mark.parametrize("manner", [{"temperature": 0.0}, {"temperature": 1e-9}, {"top_k": 1}, {"top_p": 1e-9}])
def test_the_likeliest_is_taken_by_any_of_these(sampler, manner):
    assert set(drawn(sampler, [0.0, 0.1, 0.3, 0.2], **manner)) == {2}


def test_a_seed_draws_the_same_in_any_row_and_goes_on(sampler):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    alone, among = chooser(seed=5), chooser(seed=5)
    others = [chooser(), chooser(seed=6), chooser(temperature=0.0)]
    first = [sampler.choose(logits[None].clone(), [alone])[0][0] for _ in range(8)]
    second = [sampler.choose(logits.repeat(4, 1), [*others, among])[0][3] for _ in range(8)]
    assert first == second
    assert len(set(first)) > 1


def test_settings_hold_for_their_own_row_alone(sampler):
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 4)
    manners = [chooser(temperature=0.0), chooser(top_k=1), chooser(temperature=0.0, logit_bias={0: 9.0}), chooser()]
    rows = [sampler.choose(logits.clone(), manners)[0] for _ in range(100)]
    assert {tuple(row[:3]) for row in rows} == {(3, 3, 0)}
    assert {row[3] for row in rows} >= {2, 3}


def test_penalties_grow_with_how_often_a_token_was_given(sampler):
    logits = torch.tensor([[3.0, 2.0, 0.0]])
    often = chooser(temperature=0.0, frequency_penalty=0.4)
    once = chooser(temperature=0.0, presence_penalty=1.5)

    def turns(row, count):
        tokens = []
        for _ in range(count):
            [token] = sampler.choose(logits.clone(), [row])[0]
            row.accept(token)
            tokens.append(token)
        return tokens

    assert turns(often, 5) == [0, 0, 0, 1, 0]
    assert turns(once, 4) == [0, 1, 0, 0]


def test_logprobs_are_of_the_logits_as_they_were(sampler):
    logits = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    wanted = logits.log_softmax(-1)
    manners = [
        chooser(temperature=0.0, logprobs=True, top_logprobs=2, logit_bias={1: 50.0}),
        chooser(temperature=0.0),
        chooser(temperature=3.0, logprobs=True),
    ]
    tokens, logprobs = sampler.choose(logits.clone(), manners)
    assert logprobs.keys() == {0, 2}
    assert tokens[0] == logprobs[0].token_id == 1
    assert logprobs[0].logprob == pytest.approx(float(wanted[0, 1]))
    assert [token for token, _ in logprobs[0].top] == [2, 0]
    assert [value for _, value in logprobs[0].top] == pytest.approx([float(wanted[0, 2]), float(wanted[0, 0])])
    assert logprobs[2].logprob == pytest.approx(float(wanted[2, tokens[2]]))
    assert logprobs[2].top == ()

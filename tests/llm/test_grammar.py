"""Answers by a JSON schema: a model that knows nothing gives valid JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed: answers by a schema are NOT tested")

from jsonschema_rs import is_valid  # noqa: E402
from torch_engines import Tiny, answers, ask  # noqa: E402

from aiquery_serving.errors import InvalidRequestError  # noqa: E402
from aiquery_serving.llm import grammar  # noqa: E402
from aiquery_serving.llm.grammar import Grammars  # noqa: E402
from aiquery_serving.llm.interface import LENGTH, STOP  # noqa: E402

REVIEW = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative", "naïve 🚀"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "ok": {"type": ["boolean", "null"]},
        "about": {"$ref": "#/$defs/thing"},
    },
    "required": ["sentiment", "stars", "tags", "ok", "about"],
    "additionalProperties": False,
    "$defs": {
        "thing": {
            "type": "object",
            "properties": {"id": {"type": "string", "pattern": "^[a-c]{2}-[0-9]$"}},
            "required": ["id"],
            "additionalProperties": False,
        }
    },
}

leaves = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -20, "maximum": 300},
        {"type": "string", "maxLength": 4},
        {"enum": ["a", 1, None, "ü"]},
        {"const": {"x": [1]}},
    ]
)


def record(parts, optional):
    required = [name for name in parts if name != "b" or not optional]
    return {"type": "object", "properties": parts, "required": required, "additionalProperties": False}


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(record, st.dictionaries(st.sampled_from("abü"), inner, min_size=1, max_size=3), st.booleans()),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def tiny(llama):
    torch.set_num_threads(1)
    return Tiny(llama)


@pytest.fixture(scope="module")
def engine(tiny):
    with tiny.engine() as engine:
        yield engine


def by(schema, seed, count=400, **sampling):
    return ask([7, 8, 9], count, schema=json.dumps(schema), seed=seed, **({"temperature": 1.0} | sampling))


def test_a_model_of_random_weights_gives_valid_json(engine):
    got = answers(engine, [by(REVIEW, seed) for seed in range(12)])
    assert [answer.finish for answer in got] == [STOP] * 12
    for answer in got:
        assert is_valid(REVIEW, json.loads(answer.text))
    assert len({answer.text for answer in got}) > 6


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas)
def test_whatever_the_schema_the_answer_fulfils_it(engine, schema):
    for answer in answers(engine, [by(schema, seed) for seed in range(3)]):
        assert answer.finish == STOP
        assert is_valid(schema, json.loads(answer.text))


def test_others_in_the_batch_are_free(engine, tiny):
    free = ask([7, 8, 9], 12)
    alone, among = answers(engine, [free]), answers(engine, [by(REVIEW, 1), free, by(REVIEW, 2)])
    assert among[1].tokens == alone[0].tokens


def test_what_is_cut_off_says_so(engine):
    [answer] = answers(engine, [by(REVIEW, 3, count=6)])
    assert (answer.finish, answer.usage.completion_tokens) == (LENGTH, 6)


@pytest.mark.parametrize("manner", [{"temperature": 0.0}, {"logit_bias": {4: 100.0}}, {"ignore_eos": True}])
def test_no_setting_leads_out_of_the_schema(engine, manner):
    [answer] = answers(engine, [by(REVIEW, 4, **manner)])
    assert answer.finish == STOP
    assert is_valid(REVIEW, json.loads(answer.text))


def test_spaces_are_few(engine, tiny):
    space = tiny.prompter.text(" ", raw=True)
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3}
    [answer] = answers(engine, [by(schema, 5, logit_bias=dict.fromkeys(space, 100.0))])
    assert answer.text.count(" ") >= 3
    assert "  " not in answer.text
    assert len(json.loads(answer.text)) == 3


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ('{"type": "nope"}', "Invalid type: nope"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ('{"type": "string", "pattern": "("}', "unclosed group"),
        ('{"type": "integer", "minimum": 5, "maximum": 1}', "minimum"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("not JSON", "expected"),
        ("[]", "object"),
        ("", ""),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(engine, schema, why):
    refused, neighbour = answers(engine, [ask([7], schema=schema), ask([7], 3, ignore_eos=True)])
    assert isinstance(refused, InvalidRequestError)
    assert why in str(refused)
    assert neighbour.usage.completion_tokens == 3


def test_a_schema_is_compiled_once_and_forgotten_when_there_are_many(tiny, monkeypatch):
    monkeypatch.setattr(grammar, "_KEPT", 2)
    grammars = Grammars(tiny.prompter.tokenizer, 512, [4])
    compiled = []
    compile_one = grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda schema: compiled.append(schema) or compile_one(schema))
    first, second, third = ('{"type": "null"}', '{"type": "boolean"}', '{"enum": [1]}')
    for schema in (first, second, first, first, third, first, second):
        grammars.matcher(schema)
    assert compiled == [first, second, third, second]


def test_matchers_of_one_schema_go_their_own_ways(tiny):
    grammars = Grammars(tiny.prompter.tokenizer, 512, [4])
    one, other = (grammars.matcher('{"enum": ["ab", "ac"]}') for _ in range(2))
    assert one.consume_token(tiny.prompter.text('"', raw=True)[0])
    allowed = grammars.allowed([one, other], 512)
    assert allowed.shape == (2, 512)
    assert allowed[0].tolist() != allowed[1].tolist()
    assert not allowed[:, 456:].any()

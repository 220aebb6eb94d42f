"""From request bodies to what an engine is asked: every field, its range, and what is said of a wrong one."""

from __future__ import annotations

import json
from functools import reduce

import pytest
from fake_engine import BytePrompter, said

from aiquery_serving.entities.foundation import chat, completions, embedding
from aiquery_serving.entities.foundation.constraints import call_schema, tools_of
from aiquery_serving.errors import ContextLengthError, InvalidRequestError
from aiquery_serving.llm.instructions import Instructions
from aiquery_serving.llm.interface import Sampling

HI = {"messages": [{"role": "user", "content": "Hi"}]}
DEEP = reduce(lambda inner, _: {"a": inner}, range(2000), {})
NOW = {"type": "function", "function": {"name": "now"}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"$ref": "#/$defs/Place"}},
            "required": ["place"],
            "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}}},
        },
    },
}


def sampled(**fields):
    (generation,) = chat.ask({**HI, **fields}, BytePrompter()).generations
    return generation.sampling


def completed(prompter=None, context=64, **fields):
    return completions.ask({"prompt": "Hi", **fields}, prompter or BytePrompter(), context=context)


def embedded(**fields):
    instructions = Instructions({"query": "Find: "}, default="Text: ")
    return embedding.ask(fields, BytePrompter(), instructions=instructions, dimensions=8)


SAMPLING = [
    ({}, Sampling()),
    ({"temperature": None, "max_tokens": None, "stop": None, "n": None, "logprobs": None}, Sampling()),
    ({"max_tokens": 5}, Sampling(max_tokens=5)),
    ({"max_completion_tokens": 5}, Sampling(max_tokens=5)),
    ({"max_tokens": 5, "max_completion_tokens": 6}, Sampling(max_tokens=5)),
    ({"temperature": 0}, Sampling(temperature=0)),
    ({"temperature": 2, "top_p": 0.5, "top_k": 40}, Sampling(temperature=2, top_p=0.5, top_k=40)),
    ({"top_k": -1}, Sampling()),
    ({"seed": -7}, Sampling(seed=-7)),
    ({"stop": "a"}, Sampling(stop=("a",))),
    ({"stop": ["a", "b"]}, Sampling(stop=("a", "b"))),
    ({"logprobs": True, "top_logprobs": 20}, Sampling(logprobs=True, top_logprobs=20)),
    ({"frequency_penalty": -2, "presence_penalty": 2}, Sampling(frequency_penalty=-2, presence_penalty=2)),
    ({"logit_bias": {"7": -100, "8": 0}}, Sampling(logit_bias={7: -100})),
    ({"response_format": {"type": "text"}}, Sampling()),
    ({"response_format": {"type": "json_object"}}, Sampling(schema='{"type":"object"}')),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}},
        Sampling(schema='{"type":"integer"}'),
    ),
    ({"extra_params": {"temperature": "0.5", "top_k": "3", "stop": "1"}}, Sampling(temperature=0.5, top_k=3, stop=("1",))),
    ({"extra_params": {"stop": '["1", "2"]', "seed": 4}}, Sampling(stop=("1", "2"), seed=4)),
    ({"temperature": 0, "extra_params": {"temperature": "1"}}, Sampling(temperature=0)),
    ({"user": "ada", "usage_context": {"a": "b"}, "stream": True, "store": False, "best_of": 1}, Sampling()),
    ({"ignore_eos": True}, Sampling(ignore_eos=True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "sampling"), SAMPLING, ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else ""
)
def test_fields_say_how_tokens_are_chosen(fields, sampling):
    assert sampled(**fields) == sampling


WRONG = {
    "max_tokens": ([0, -1, 1.5, "5", True, float("nan")], "a whole number from 1"),
    "temperature": ([-0.1, 2.1, "0", True, float("nan"), float("inf")], "a number from 0 to 2"),
    "top_p": ([0, 1.1, [], DEEP, "x" * 10_000], "a number above 0 to 1"),
    "top_k": ([-2, 0.5], "a whole number from -1"),
    "n": ([0, 129, "1"], "a whole number from 1 to 128"),
    "seed": ([2**63, "a"], "a whole number from -9223372036854775808 to 9223372036854775807"),
    "stop": ([1, [1], {"a": 1}], "a string or a list of strings"),
    "logprobs": ([1, "true"], "true or false"),
    "top_logprobs": ([-1, 21, True], "a whole number from 0 to 20"),
    "frequency_penalty": ([2.1], "a number from -2 to 2"),
    "presence_penalty": (["a"], "a number from -2 to 2"),
    "response_format": (["json_object", {"type": "xml"}, {}], '{"type": "json_object"}'),
    "tools": (["now", [{}], [{"function": {"name": ""}}], [NOW] * 33, [7]], "function"),
    "tool_choice": (["always", 7, {"function": {}}], "auto, none, required or"),
    "reasoning_effort": (["hard", 7], "one of none, minimal, low, medium, high, xhigh, max"),
    "thinking": (["yes", {}], "true, false or"),
    "extra_params": (["a", [1]], "an object"),
    "parallel_tool_calls": ([1], "true or false"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (values, _) in WRONG.items() for value in values])
def test_a_wrong_field_is_named_with_its_value_and_what_it_should_be(name, value):
    with pytest.raises(InvalidRequestError) as caught:
        sampled(**{name: value})
    assert str(caught.value).startswith(f"The request's '{name}' must be ")
    assert WRONG[name][1] in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"stop": [""]}, "must be up to 32 texts, none of them empty"),
        ({"stop": ["a"] * 33}, "must be up to 32 texts"),
        ({"top_logprobs": 2}, "'top_logprobs' needs 'logprobs': true"),
        ({"logit_bias": {"256": 1}}, "keys are token numbers from 0 to 255, not '256'"),
        ({"logit_bias": {"a": 1}}, "token numbers"),
        ({"logit_bias": {"1": 101}}, "a number from -100 to 100"),
        ({"logit_bias": [1]}, "an object from token numbers to numbers"),
        ({"functions": [{"name": "now"}]}, "have no 'functions': leave it out"),
        ({"repetition_penalty": 1.2}, "have no 'repetition_penalty'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": DEEP}}},
            "JSON schema of the request is none",
        ),
        (
            {"tools": [{"function": {"name": "f", "parameters": DEEP}}], "tool_choice": "required"},
            "'f' are nested too deeply",
        ),
        ({"tool_choice": "required"}, "asks for a function that is not among its 'tools'"),
        ({"tools": [NOW], "tool_choice": {"function": {"name": "then"}}}, "asks for a function that is not among"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, '{"name": …, "schema": {…}}'),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_a_sentence(fields, sentence):
    with pytest.raises(InvalidRequestError) as caught:
        sampled(**fields)
    assert sentence in str(caught.value)


def test_several_choices_are_one_prompt_several_times_with_seeds_of_their_own():
    asked = chat.ask({**HI, "n": 3, "seed": 7}, BytePrompter(), batch=True)
    assert [generation.token_ids for generation in asked.generations] == [list(b"Hi>")] * 3
    assert [generation.sampling.seed for generation in asked.generations] == [7, 8, 9]
    assert all(generation.batch for generation in asked.generations)
    assert [generation.sampling.seed for generation in chat.ask({**HI, "n": 2}, BytePrompter()).generations] == [
        None
    ] * 2
    edge = chat.ask({**HI, "n": 2, "seed": 2**63 - 1}, BytePrompter()).generations[1].sampling.seed
    assert edge == 0


def test_tools_go_to_the_template_unless_none_may_be_called():
    prompter = BytePrompter()
    for choice, offered in (({}, [NOW]), ({"tool_choice": "auto"}, [NOW]), ({"tool_choice": "none"}, None)):
        chat.ask({**HI, "tools": [NOW], **choice}, prompter)
        assert prompter.told.tools == offered
    chat.ask({**HI, "tools": []}, prompter)
    assert prompter.told.tools is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low", "enable_thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": False}, {"enable_thinking": False, "thinking": False}),
    ],
)
def test_the_template_is_told_how_much_to_think(fields, words):
    prompter = BytePrompter()
    chat.ask({**HI, **fields}, prompter)
    assert prompter.told.extra == words


def test_a_call_that_is_asked_for_is_a_schema_whose_references_still_hold():
    assert tools_of({"tools": [NOW, WEATHER]}).schema is None
    (named,) = json.loads(tools_of({"tools": [NOW, WEATHER], "tool_choice": WEATHER}).schema)["anyOf"]
    assert named["properties"] == {"name": {"const": "weather"}, "arguments": {"$ref": "#/$defs/0"}}
    schema = json.loads(tools_of({"tools": [NOW, WEATHER], "tool_choice": "required"}).schema)
    assert [call["properties"]["name"]["const"] for call in schema["anyOf"]] == ["now", "weather"]
    assert schema["$defs"]["1"]["properties"]["place"] == {"$ref": "#/$defs/1/$defs/Place"}


@pytest.mark.parametrize(
    ("declared", "closed"),
    [
        ({}, True),
        ({"parameters": None}, True),
        ({"parameters": {}}, True),
        ({"parameters": {"type": "object", "properties": {}}}, True),
        ({"parameters": {"type": "object", "properties": {}, "additionalProperties": True}}, False),
        ({"parameters": {"type": "object"}}, False),
    ],
)
def test_a_function_without_parameters_is_called_with_none(declared, closed):
    schema = json.loads(call_schema([{"function": {"name": "now", **declared}}]))
    assert (schema["$defs"]["0"].get("additionalProperties") is False) == closed


def test_the_schema_of_a_call_is_one_that_answers_can_be_held_to():
    llguidance = pytest.importorskip(
        "llguidance", reason="llguidance is not installed: schemas of calls are NOT tested"
    )
    grammar = llguidance.LLMatcher.grammar_from_json_schema(call_schema([NOW, WEATHER]))
    assert llguidance.LLMatcher.validate_grammar(grammar) == ""


def test_a_completion_has_a_prompt_or_several_with_choices_of_each():
    asked = completed(prompt=["a", "b"], n=2, seed=1)
    assert [bytes(generation.token_ids) for generation in asked.generations] == [b"^a", b"^a", b"^b", b"^b"]
    assert [generation.sampling.seed for generation in asked.generations] == [1, 2, 1, 2]
    assert asked.per_prompt == 2
    assert [choice.whole(piece)["index"] for choice, piece in zip(asked.choices, said("x") * 4, strict=True)] == [
        0,
        1,
        2,
        3,
    ]


def test_a_raw_prompt_has_no_special_tokens():
    assert bytes(completed(use_raw_prompt=True).generations[0].token_ids) == b"Hi"


def test_a_completion_counts_log_probabilities_rather_than_switching_them_on():
    assert completed(logprobs=0).generations[0].sampling == Sampling(logprobs=True)
    assert completed(logprobs=3).generations[0].sampling == Sampling(logprobs=True, top_logprobs=3)


def test_a_prompt_that_is_too_long_is_left_to_the_engine_refused_or_cut_at_its_beginning():
    long = "x" * 60 + "end"
    assert len(completed(prompt=long, max_tokens=8).generations[0].token_ids) == 64
    kept = completed(prompt=long, max_tokens=8, error_behavior="truncate").generations[0].token_ids
    assert len(kept) == 56
    assert bytes(kept).endswith(b"xend")
    assert len(completed(prompt=long, error_behavior="truncate").generations[0].token_ids) == 63
    with pytest.raises(ContextLengthError, match=r"64 tokens and an answer of up to 8 are more than .* context of 64"):
        completed(prompt=long, max_tokens=8, error_behavior="error")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": None}, "'prompt' must be a string or a list of strings"),
        ({"prompt": []}, "'prompt' must be"),
        ({"prompt": [1, 2]}, "'prompt' must be"),
        ({"suffix": "end"}, "have no 'suffix'"),
        ({"best_of": 3}, "have no 'best_of'"),
        ({"echo": True, "logprobs": 1}, "ask for 'echo' or for 'logprobs'"),
        ({"error_behavior": "panic"}, "one of truncate, error"),
        ({"logprobs": True}, "a whole number from 0 to 20"),
    ],
)
def test_a_completion_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(InvalidRequestError) as caught:
        completed(**fields)
    assert sentence in str(caught.value)


INPUTS = [
    ({"input": "a"}, [b"^Text: a"]),
    ({"input": ["a", "b"]}, [b"^Text: a", b"^Text: b"]),
    ({"input": "a", "instruction": "Say: "}, [b"^Say: a"]),
    ({"input": "a", "instruction": "query"}, [b"^Find: a"]),
    ({"input": [97, 98]}, [b"ab"]),
    ({"input": [[97], [98, 99]], "instruction": "Say: "}, [b"a", b"bc"]),
]


@pytest.mark.parametrize(("fields", "texts"), INPUTS)
def test_embeddings_are_of_texts_with_their_instruction_or_of_tokens(fields, texts):
    assert [bytes(text) for text in embedded(**fields).texts] == texts


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "'input' must be a string, or a list of strings"),
        ({"input": []}, "'input' must be"),
        ({"input": 7}, "'input' must be"),
        ({"input": ["a", 7]}, "'input' must be texts, or lists of token numbers from 0 to 255"),
        ({"input": [256]}, "token numbers from 0 to 255"),
        ({"input": [[True]]}, "token numbers from 0 to 255"),
        ({"input": ["a", []]}, "no tokens in place 1"),
        ({"input": "a", "dimensions": 9}, "'dimensions' must be a whole number from 1 to 8, not 9"),
        ({"input": "a", "encoding_format": "hex"}, "one of float, base64"),
        ({"input": "a", "instruction": 7}, "'instruction' must be a string"),
    ],
)
def test_embeddings_that_cannot_be_are_refused(fields, sentence):
    with pytest.raises(InvalidRequestError) as caught:
        embedded(**fields)
    assert sentence in str(caught.value)

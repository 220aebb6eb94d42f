"""What models write, and which of it is a call of a tool, a thought, or text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery_serving.entities.foundation.reading import Manner, Reader, Spoken
from aiquery_serving.entities.foundation.tool_calls import Call, CallFinder

NAMES = frozenset({"now", "weather"})
NOW, WEATHER = Call("now", "{}"), Call("weather", '{"city":"Bern"}')
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
LLAMA = '{"name": "weather", "parameters": {"city": "Bern"}}'

WRITTEN = {
    "nothing": ("", "", []),
    "text": ("It is {noon} in <Bern> [1].", "It is {noon} in <Bern> [1].", []),
    "blank": (" \n", " \n", []),
    "hermes": (HERMES, "", [WEATHER]),
    "hermes twice, after a word": (f"Wait.\n\n{HERMES}\n{HERMES}\n", "Wait.", [WEATHER, WEATHER]),
    "hermes, then a word": (f"{HERMES} Done.", " Done.", [WEATHER]),
    "hermes, never closed": (HERMES[:-12], "", [WEATHER]),
    "hermes, cut off": (HERMES[:-30], HERMES[:-30], []),
    "hermes without JSON": ("<tool_call>now</tool_call>", "<tool_call>now</tool_call>", []),
    "hermes of anything": ('<tool_call>{"name": "x"}</tool_call>', "", [Call("x", "{}")]),
    "hermes as the API has it": (
        '<tool_call>[{"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}]</tool_call>',
        "",
        [NOW],
    ),
    "mistral": (
        '[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "weather", "arguments": {"city": "Bern"}}]',
        "",
        [NOW, WEATHER],
    ),
    "mistral, newer": ('[TOOL_CALLS]now{}[TOOL_CALLS]weather[ARGS]{"city": "Bern"}', "", [NOW, WEATHER]),
    "mistral without its token": ('[{"name": "now", "arguments": {}}]', "", [NOW]),
    "llama": (LLAMA, "", [WEATHER]),
    "llama, behind its token": (f"<|python_tag|>{LLAMA}", "", [WEATHER]),
    "llama twice": (f'{LLAMA}; {{"name": "now"}}', "", [WEATHER, NOW]),
    "llama, then a word": (f"{LLAMA}\nSo.", "\nSo.", [WEATHER]),
    "llama in mid-text": (f"Say {LLAMA}", f"Say {LLAMA}", []),
    "llama, cut off": (LLAMA[:-4], LLAMA[:-4], []),
    "JSON that is no call": ('{"name": "Ada", "arguments": {}}', '{"name": "Ada", "arguments": {}}', []),
    "JSON of something else": ('{"city": "Bern"}', '{"city": "Bern"}', []),
    "a list of something else": ("[1, 2]", "[1, 2]", []),
    "a list with one that is no call": ('[{"name": "now"}, 7]', '[{"name": "now"}, 7]', []),
    "arguments that are no object": ('{"name": "now", "arguments": 7}', '{"name": "now", "arguments": 7}', []),
    "arguments as JSON text": ('{"name": "weather", "arguments": "{\\"city\\": \\"Bern\\"}"}', "", [WEATHER]),
    "line breaks within": ('{"name": "now", "arguments": {"a": "1\n2"}}', "", [Call("now", '{"a":"1\\n2"}')]),
    "a number beyond 64 bits": (
        f'{{"name": "now", "arguments": {{"a": {10**30}}}}}',
        "",
        [Call("now", f'{{"a":{10**30}}}')],
    ),
    "half a surrogate pair": ('{"name": "now", "arguments": {"a": "\\ud800"}}', "", [Call("now", '{"a":"\\ud800"}')]),
    "a name of no letters": (
        '<tool_call>{"name": "\\ud800"}</tool_call>',
        '<tool_call>{"name": "\\ud800"}</tool_call>',
        [],
    ),
    "an opener that is none": ("a <tool_cal and [TOOL", "a <tool_cal and [TOOL", []),
    "deep nesting": ("[" * 100_000, "[" * 100_000, []),
}


@pytest.mark.parametrize(("written", "text", "calls"), WRITTEN.values(), ids=WRITTEN)
def test_calls_are_found_in_every_form_and_the_rest_is_text(written, text, calls):
    finder = CallFinder(NAMES)
    found = [*finder.feed(written), *finder.finish()]
    assert "".join(item for item in found if isinstance(item, str)) == text
    assert [item for item in found if isinstance(item, Call)] == calls


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_found_does_not_depend_on_how_the_answer_comes_in_pieces(data):
    written = data.draw(st.sampled_from([each[0] for name, each in WRITTEN.items() if name != "deep nesting"]))
    thought = data.draw(
        st.sampled_from(["", "<think>\nHm <b>.\n</think>\n\n", "<think></think>", "<think>cut", " <thin"])
    )
    manner = Manner(functions=data.draw(st.sampled_from([NAMES, frozenset()])))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(thought + written)))))
    whole = Reader(manner).read(thought + written)
    reader, pieced = Reader(manner), Spoken()
    for start, end in zip([0, *cuts], [*cuts, len(thought + written)], strict=True):
        pieced += reader.feed((thought + written)[start:end])
    assert pieced + reader.finish() == whole


def test_text_is_held_back_only_from_where_a_call_may_begin():
    finder = CallFinder(NAMES)
    assert [finder.feed(text) for text in ("The", " time", " is <", "b>noon", "</b>", ". <tool", "_call>")] == [
        ["The"], [" time"], [" is"], [" <b>noon"], ["</b>"], ["."], [],
    ]  # fmt: skip
    assert CallFinder(NAMES).feed('{"city') == ['{"city']
    assert CallFinder(NAMES).feed('{"na') == []


def test_json_is_a_call_only_where_nothing_was_said_before():
    finder = CallFinder(NAMES)
    assert "".join([*finder.feed("Say "), *finder.feed(LLAMA), *finder.finish()]) == f"Say {LLAMA}"


THOUGHT = {
    "none": ("Yes.", "", "Yes."),
    "one": ("<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
    "an empty one": ("<think>\n\n</think>\n\nYes.", "", "Yes."),
    "after blank space": ("\n<think>Hm.</think>Yes.", "Hm.", "Yes."),
    "never closed": ("<think>Hm. ", "Hm.", ""),
    "not at the beginning": ("So <think>Hm.</think>", "", "So <think>Hm.</think>"),
    "cut off at once": ("<thi", "", "<thi"),
}


@pytest.mark.parametrize(("written", "thought", "text"), THOUGHT.values(), ids=THOUGHT)
def test_thoughts_are_parted_from_text(written, thought, text):
    assert Reader(Manner()).read(written) == Spoken(thought, text)


def test_a_thought_may_have_begun_in_the_prompt():
    assert Reader(Manner(thinking=True)).read("Hm.\n</think>\nYes.") == Spoken("Hm.", "Yes.")


def test_a_call_may_follow_a_thought():
    spoken = Reader(Manner(functions=NAMES)).read(f"<think>{HERMES}</think>\n{LLAMA}")
    assert spoken == Spoken(HERMES, "", (WEATHER,))


def test_what_is_held_to_a_form_is_read_as_it_is():
    text = json.dumps({"a": "<think>"})
    assert Reader(Manner(literal=True)).read(f"<think>{text}") == Spoken(text=f"<think>{text}")


def test_only_the_first_call_counts_where_one_is_wanted():
    manner = Manner(functions=NAMES, one_call=True)
    assert Reader(manner).read(HERMES + HERMES) == Spoken(calls=(WEATHER,))
    reader = Reader(manner)
    assert [reader.feed(HERMES), reader.feed(HERMES)] == [Spoken(calls=(WEATHER,)), Spoken()]

"""Tokens are counted where a tokenizer is at hand, never with a download, and never bounded too low."""

import hashlib
import json
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving import tokens
from aiquery_serving.endpoint import ExternalModel, ServedEntity
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.tokens import Counted, OutputBounds, count, most, output_bounds

CUSTOM = ServedEntity(name="llm", entity_name="llm", entity_version="1")
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "x" * 100_000}}


def external(model, provider="openai"):
    return ServedEntity(name="s", external_model=ExternalModel(provider=provider, name=model, task="llm/v1/chat"))


def chat(content, **more):
    return {"messages": [{"role": "user", "content": content}], **more}


class ByWords:
    def count_prompt(self, body):
        if "prompt" not in body:
            raise InvalidRequestError("There is no prompt.")
        return len(body["prompt"].split())


class FakeTiktoken(types.ModuleType):
    """Knows two models, counts words, and tells whom it had to load."""

    def __init__(self):
        super().__init__("tiktoken")
        self.loaded = []

    def encoding_name_for_model(self, model):
        return {"gpt-4o": "o200k_base", "gpt-5": "o200k_base", "davinci": "p50k_base"}[model]

    def get_encoding(self, name):
        self.loaded.append(name)
        return types.SimpleNamespace(encode_ordinary=str.split)


@pytest.fixture
def tiktoken(monkeypatch, tmp_path):
    """tiktoken with the file of one encoding in its folder."""
    module, content = FakeTiktoken(), b"ranks"
    url = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
    (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(content)
    monkeypatch.setitem(sys.modules, "tiktoken", module)
    monkeypatch.setitem(tokens._TIKTOKEN_FILES, "o200k_base", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    tokens._tiktoken.cache_clear()
    yield module
    tokens._tiktoken.cache_clear()


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        ({"prompt": "one two three"}, Counted(3, exact=True)),
        ({"input": ["one two", "three"]}, Counted(3, exact=True)),
        (chat("one two"), Counted(2 + 3 + 1 + 3, exact=True)),
        ({"messages": [{"role": "user", "content": "one", "name": "ann"}]}, Counted(1 + 3 + 1 + 1 + 1 + 3, exact=True)),
        (chat([{"type": "text", "text": "one two"}]), Counted(9, exact=True)),
        (chat([{"type": "text", "text": "one two"}, PICTURE]), Counted(9, exact=False)),
        (chat("one two", tools=[]), Counted(9, exact=False)),
        (chat("one two", response_format={"type": "json_object"}), Counted(9, exact=False)),
    ],
)
def test_openai_is_counted_by_tiktoken(tiktoken, body, counted):
    assert count(body, external("gpt-4o")) == counted


def test_a_model_of_unknown_framing_is_counted_but_not_exactly(tiktoken):
    assert count(chat("one two"), external("gpt-5")) == Counted(9, exact=False)


@pytest.mark.parametrize("served", [external("gpt-9"), external("davinci"), external("gpt-4o", "custom"), CUSTOM])
def test_without_the_models_tokenizer_the_text_is_estimated(tiktoken, served):
    assert count({"prompt": "abcdefg"}, served) == Counted(2, exact=False)
    assert tiktoken.loaded == []


@pytest.mark.parametrize("damage", ["missing", "changed", "no folder", "other folder"])
def test_tiktoken_is_not_asked_when_it_would_download(tiktoken, damage, tmp_path, monkeypatch):
    (file,) = tmp_path.iterdir()
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(b"rank")
    else:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "" if damage == "no folder" else str(tmp_path / "none"))
    assert not count(chat("one two"), external("gpt-4o")).exact
    assert tiktoken.loaded == []


def test_tiktokens_other_folder_is_looked_at_too(tiktoken, tmp_path, monkeypatch):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path))
    assert count(chat("one two"), external("gpt-4o")).exact


def test_without_tiktoken_the_text_is_estimated(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokens._tiktoken.cache_clear()
    assert count(chat("abcdefg"), external("gpt-4o")) == Counted(2, exact=False)
    tokens._tiktoken.cache_clear()


def test_an_entity_with_a_tokenizer_counts_for_itself():
    assert count({"prompt": "one two"}, CUSTOM, ByWords()) == Counted(2, exact=True)
    assert count({"input": "one two"}, CUSTOM, ByWords()) == Counted(2, exact=False)
    assert count({"prompt": "one two"}, CUSTOM, object()) == Counted(2, exact=False)


@pytest.mark.parametrize(
    ("body", "learned", "bounds"),
    [
        (chat("x"), None, (1, 256, 4096)),
        (chat("x"), 40, (1, 40, 4096)),
        (chat("x"), 5000, (1, 5000, 10_000)),
        (chat("x", max_tokens=100), None, (1, 100, 100)),
        (chat("x", max_tokens=100), 40, (1, 40, 100)),
        (chat("x", max_tokens=100, max_completion_tokens=300), None, (1, 256, 300)),
        (chat("x", extra_params={"max_tokens": 9}), None, (1, 9, 9)),
        (chat("x", max_tokens=10, n=3), None, (3, 30, 30)),
        ({"prompt": ["x", "y"], "best_of": 2, "max_tokens": 5}, None, (4, 20, 20)),
        (chat("x", max_tokens=-1), None, (1, 256, 4096)),
        (chat("x", max_tokens="7"), None, (1, 256, 4096)),
        (chat("x", max_tokens=float("nan")), None, (1, 256, 4096)),
        (chat("x", max_tokens=6.5), None, (1, 7, 7)),
        ({"input": ["x"]}, 40, (0, 0, 0)),
        ({"dataframe_records": [{"x": 1}]}, 40, (0, 0, 0)),
    ],
)
def test_an_answer_is_bounded_by_what_was_asked_for_else_by_a_stated_default(body, learned, bounds):
    assert output_bounds(body, learned) == OutputBounds(*bounds)


@given(st.text(), st.text())
def test_no_tokenizer_of_bytes_counts_more_than_the_bound(system, user):
    body = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}
    framed = sum(len(text.encode("utf-8", "surrogatepass")) + 8 for text in (system, user))
    assert most(body, external("gpt-5")) >= framed


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5"])
def test_a_picture_is_bounded_by_what_providers_make_of_one_and_not_by_its_bytes(model):
    bound = {"gpt-4o-mini": 50_000, "gpt-5": 16_384}[model]
    inline, linked = (
        most(chat([PICTURE]), external(model)),
        most(chat([{"image_url": "https://x/y.png"}]), external(model)),
    )
    assert bound < inline < bound + 500
    assert bound < linked < bound + 500


def test_tools_and_schemas_count_with_what_providers_say_about_them():
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    grown = most(chat("x", response_format=schema), CUSTOM) - most(chat("x"), CUSTOM)
    assert grown > 900 + len(json.dumps(schema))


def test_rows_of_a_custom_model_are_no_tokens():
    assert most({"dataframe_records": [{"text": "x" * 1000}]}, CUSTOM) == 0


@pytest.mark.parametrize(
    "body", [{"messages": "hello"}, {"messages": [3]}, {"messages": None}, {"prompt": None}, {"input": [[1, 2]]}]
)
def test_a_malformed_body_is_sized_all_the_same(body):
    assert most(body, CUSTOM) > 0
    assert count(body, CUSTOM).tokens >= 0

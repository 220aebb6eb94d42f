import asyncio
import json
import warnings

import numpy as np
import pytest

from aiquery_serving.errors import ContextLengthError, InvalidRequestError, ModelError
from aiquery_serving.llm.embedder import load_torch_embedder
from aiquery_serving.llm.model_files import find
from aiquery_serving.llm.pooling import read_pooling, shortened
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.settings import EngineSettings


@pytest.fixture
def torch(torch_is_here):
    return pytest.importorskip("torch")


def loaded(folder, **settings):
    files, chosen = find(folder, task="llm/v1/embeddings"), EngineSettings(device="cpu", **settings)
    return load_torch_embedder(files, chosen, Prompter.load(files, chosen), lambda _: None)


def embedded(folder, texts, **settings):
    embedder = loaded(folder, **settings)
    try:
        return asyncio.run(embedder.embed(texts))
    finally:
        embedder.close()


#: Architectures and, where nothing else is said, which of a text's hidden states is its embedding.
ARCHITECTURES = {
    "bert": "mean", "roberta": "mean", "xlm-roberta": "mean", "mpnet": "mean", "distilbert": "mean", "albert": "mean",
    "modernbert": "mean", "electra": "mean", "llama": "lasttoken", "qwen3": "lasttoken", "mistral": "lasttoken",
    "gpt2": "lasttoken", "bloom": "lasttoken", "t5": "mean",
}  # fmt: skip


def write_model(torch, folder, kind, tokenizer):
    from transformers import AutoConfig, AutoModel

    shape = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 66, "initializer_range": 0.3, "pad_token_id": 1,
        "embedding_size": 16,
    }  # fmt: skip
    own = {
        "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
        "t5": {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        "bloom": {"n_head": 4},
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **shape | own.get(kind, {})))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((tokenizer / name).read_text())
    return model.eval()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_any_architecture_is_embedded_as_alone_and_unpadded(torch, llama, tmp_path, kind):
    model = write_model(torch, tmp_path, kind, llama)
    texts = [[5 + (7 * n + m) % 400 for m in range(size)] for n, size in enumerate((3, 9, 4, 30, 1, 30, 12))]
    ours = embedded(tmp_path, texts)
    for text, row in zip(texts, ours, strict=True):
        with torch.no_grad():
            hidden = (model.encoder if kind == "t5" else model)(torch.tensor([text])).last_hidden_state[0]
        expected = hidden.mean(0) if ARCHITECTURES[kind] == "mean" else hidden[-1]
        assert row == pytest.approx((expected / expected.norm()).numpy(), abs=1e-4)


@pytest.mark.parametrize(("kind", "room"), [("roberta", 64), ("mpnet", 64), ("bert", 66), ("qwen3", 66)])
def test_a_text_may_fill_all_positions(torch, llama, tmp_path, kind, room):
    write_model(torch, tmp_path, kind, llama)
    assert embedded(tmp_path, [[7] * room, [7]]).shape == (2, 32)
    with pytest.raises(ContextLengthError, match=f"at most {room}"):
        embedded(tmp_path, [[7] * (room + 1)])


def pooled(folder, flags, *, listed=("Transformer", "Pooling"), **options):
    """Pool two texts, one of them padded, as a folder's files say."""
    import torch

    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{n}_{kind}"} for n, kind in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    hidden = torch.tensor([[[3.0, 4.0], [0.0, 8.0], [9.0, 9.0]], [[3.0, 4.0], [1.0, 0.0], [2.0, 2.0]]])
    return read_pooling(folder, is_causal=False, **options)(hidden, torch.tensor([2, 3])).numpy()


@pytest.mark.parametrize(
    ("flags", "directions"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, [[3, 4], [3, 4]]),
        ({"pooling_mode_mean_tokens": True}, [[3, 12], [6, 6]]),
        ({"pooling_mode": "mean"}, [[3, 12], [6, 6]]),
        ({"pooling_mode_max_tokens": True}, [[3, 8], [3, 4]]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, [[3, 12], [6, 6]]),
        ({"pooling_mode_weightedmean_tokens": True}, [[3, 20], [11, 10]]),
        ({"pooling_mode_lasttoken": True}, [[0, 8], [2, 2]]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [[3, 4, 1.5, 6], [3, 4, 2, 2]]),
    ],
)
def test_pooling_is_what_the_models_files_say(torch, tmp_path, flags, directions):
    expected = np.array(directions) / np.linalg.norm(directions, axis=1, keepdims=True)
    assert pooled(tmp_path, {"word_embedding_dimension": 2} | flags) == pytest.approx(expected)


def test_dense_layers_come_behind_the_pooling(torch, tmp_path):
    from safetensors.torch import save_file

    dense = tmp_path / "2_Dense"
    dense.mkdir()
    save_file(
        {
            "linear.weight": torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, 1.0]]),
            "linear.bias": torch.tensor([1.0, 0, 0]),
        },
        dense / "model.safetensors",
    )
    (dense / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.ReLU"}')
    found = pooled(tmp_path, {"pooling_mode": "cls"}, listed=("Transformer", "Pooling", "Dense", "Normalize"))
    assert found[0] == pytest.approx(np.array([0, 6, 4]) / np.hypot(6, 4))


@pytest.mark.parametrize(
    ("flags", "listed", "sentence"),
    [
        (
            {"pooling_mode": "attention"},
            ("Transformer", "Pooling"),
            "declares the pooling attention; known are cls, max",
        ),
        ({"pooling_mode_magic_tokens": True}, ("Transformer", "Pooling"), "declares the pooling magic"),
        ({"pooling_mode": "cls"}, ("Transformer", "Pooling", "LSTM"), "declares a module LSTM; known are Transformer"),
        ({"pooling_mode": "cls"}, ("Transformer", "Pooling", "Dense"), "has no model.safetensors"),
    ],
)
def test_what_is_not_known_is_refused_by_its_name(torch, tmp_path, flags, listed, sentence):
    with pytest.raises(ModelError, match=sentence):
        pooled(tmp_path, flags, listed=listed)


@pytest.mark.parametrize(
    ("names", "is_causal", "mode"),
    [
        (("bert",), False, "mean"),
        (("bert", "BAAI/bge-large-en-v1.5"), False, "cls"),
        (("bert", "bge-small"), False, "cls"),
        (("bert", "thenlper/gte-large"), False, "mean"),
        (("new", "Alibaba-NLP/gte-large-en-v1.5"), False, "cls"),
        (("gemma2", "BAAI/bge-multilingual-gemma2"), True, "lasttoken"),
    ],
)
def test_a_model_that_says_nothing_is_pooled_as_its_kind_is(tmp_path, names, is_causal, mode):
    assert read_pooling(tmp_path, is_causal=is_causal, names=names).modes == (mode,)


def test_weights_that_are_missing_are_not_made_up(torch, llama, tmp_path):
    from safetensors.torch import load_file, save_file

    write_model(torch, tmp_path, "bert", llama)
    weights = load_file(tmp_path / "model.safetensors")
    lost = "encoder.layer.1.attention.self.query.weight"
    save_file({name: weight for name, weight in weights.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"lack weights \(1, such as {lost}\)"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "modules.json cannot be read"),
        ('[{"type": 1, "path": ""}]', "must be a list of objects with a type and a path"),
        ('[{"type": "a.Pooling", "path": "1_Pooling"}]', "config.json must hold a JSON object"),
    ],
)
def test_files_that_are_broken_are_named(tmp_path, text, sentence):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=sentence):
        read_pooling(tmp_path, is_causal=False)


def test_a_model_of_unknown_architecture_is_refused(torch, llama, tmp_path):
    write_model(torch, tmp_path, "bert", llama)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "strange"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        loaded(tmp_path)


def test_an_adapter_is_merged_in(torch, llama, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: adapters of embedding models are NOT tested")
    model = write_model(torch, tmp_path, "bert", llama)
    plan = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["query", "value"], init_lora_weights=False)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft's own
        adapted = peft.get_peft_model(model, plan).eval()
        adapted.save_pretrained(tmp_path / "adapter")
    ours = embedded(tmp_path, [[7, 8, 9]], adapter=str(tmp_path / "adapter"))
    with torch.no_grad():
        mean = adapted(torch.tensor([[7, 8, 9]])).last_hidden_state[0].mean(0)
    assert ours[0] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-4)


def test_texts_for_which_memory_does_not_suffice_run_in_halves(torch, llama, tmp_path):
    from aiquery_serving.llm.encoder import Encoder

    class Narrow:
        """A model that has room for 20 tokens."""

        def __init__(self, model):
            self._model, self.runs = model, []

        def __getattr__(self, name):
            return getattr(self._model, name)

        def __call__(self, input_ids, attention_mask):
            self.runs.append(tuple(input_ids.shape))
            if input_ids.numel() > 20:
                raise torch.OutOfMemoryError
            return self._model(input_ids=input_ids, attention_mask=attention_mask)

    model = Narrow(write_model(torch, tmp_path, "bert", llama))
    encoder = Encoder(model, read_pooling(tmp_path, is_causal=False), context_length=60)
    texts = [[n] * 9 for n in range(5, 9)]
    together = encoder(texts)
    assert model.runs[1:] == [(4, 9), (2, 9), (2, 9)]
    assert together == pytest.approx(np.concatenate([encoder([text]) for text in texts]), abs=1e-5)
    with pytest.raises(torch.OutOfMemoryError):
        encoder([[5] * 21])


def test_fewer_dimensions_are_the_first_ones_at_length_one():
    embeddings = np.array([[3, 4, 5], [0, 0, 1]], np.float32)
    assert shortened(embeddings, 2) == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
    assert shortened(embeddings, 2).dtype == np.float32
    for wrong in (0, 4):
        with pytest.raises(InvalidRequestError, match=f"ask for 1 to 3, not {wrong}"):
            shortened(embeddings, wrong)

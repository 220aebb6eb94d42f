"""Which folders are foundation models, and what is what in them: files by hand, and what MLflow really writes."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
import yaml

from aiquery_serving.errors import ConfigurationError
from aiquery_serving.llm.model_files import find

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
BERT = {"model_type": "bert", "architectures": ["BertModel"]}
CHAT, COMPLETIONS, EMBEDDINGS = "llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings"


def write(folder, **files):
    """Write files by name, of which a dot is written as two underscores and a slash as four; a None is empty."""
    for name, content in files.items():
        path = folder / name.replace("____", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else "" if content is None else json.dumps(content))
    return folder


def pretrained(folder, config=LLAMA, **more):
    return write(folder, config__json=config, model__safetensors=None, **more)


def logged(folder, flavors, metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    document = {"flavors": {"python_function": {}, **flavors}, "metadata": metadata}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


@pytest.mark.parametrize(
    ("config", "files", "task"),
    [
        (LLAMA, {}, COMPLETIONS),
        (LLAMA, {"chat_template__jinja": "{{ messages }}"}, CHAT),
        (LLAMA, {"tokenizer_config__json": {"chat_template": "{{ messages }}"}}, CHAT),
        (LLAMA, {"tokenizer_config__json": {"chat_template": None}}, COMPLETIONS),
        (LLAMA, {"modules__json": "[]"}, EMBEDDINGS),
        (LLAMA, {"aiquery__json": {"task": EMBEDDINGS}}, EMBEDDINGS),
        ({"architectures": ["GPT2LMHeadModel"]}, {}, COMPLETIONS),
        ({"architectures": ["BertForMaskedLM"]}, {}, EMBEDDINGS),
        ({"architectures": ["Qwen3Model"]}, {}, EMBEDDINGS),
        (BERT, {}, EMBEDDINGS),
        ({"architectures": ["OfTomorrow"]}, {"aiquery__json": {"task": CHAT}}, CHAT),
        ({}, {"aiquery__json": {"task": COMPLETIONS}}, COMPLETIONS),
    ],
)
def test_a_folder_tells_what_it_is_for(tmp_path, config, files, task):
    files = find(pretrained(tmp_path, config, **files))

    assert (files.task, files.model, files.tokenizer) == (task, tmp_path, tmp_path)
    assert files.model_type == config.get("model_type", "")


def test_the_task_that_is_asked_for_wins(tmp_path):
    assert find(pretrained(tmp_path), task=EMBEDDINGS).task == EMBEDDINGS


def test_a_folder_may_have_a_system_prompt(tmp_path):
    folder = pretrained(tmp_path, aiquery__json={"system_prompt": "Be brief."})

    assert find(folder).system_prompt == "Be brief."


@pytest.mark.parametrize("files", [{}, {"model__pkl": None}, {"README__md": "x"}])
def test_other_folders_are_none(tmp_path, files):
    assert find(write(tmp_path, **files)) is None


@pytest.mark.parametrize(
    ("flavors", "metadata"),
    [
        ({}, None),
        ({"sklearn": {}}, None),
        ({"transformers": {"task": "text-generation"}}, None),
        ({"transformers": {"task": "text-classification"}}, {"task": "text-classification"}),
        ({"python_function": {}}, {"task": "llm/v1/chat"}),
        ({"sentence_transformers": {}}, None),
    ],
)
def test_other_models_of_mlflow_stay_custom(tmp_path, flavors, metadata):
    pretrained(tmp_path / "model")

    assert find(logged(tmp_path, flavors, metadata)) is None


@pytest.mark.parametrize(
    ("flavor", "metadata"),
    [
        ({"inference_task": CHAT, "model_binary": "model"}, {"task": CHAT}),
        ({"task": "text-generation", "model_binary": "model"}, {"task": CHAT}),
    ],
    ids=["the flavor says so", "metadata of older versions does"],
)
def test_mlflow_models_are_found_by_their_task(tmp_path, flavor, metadata):
    pretrained(tmp_path / "model", BERT, aiquery__json={"system_prompt": "of the folder"})
    write(tmp_path / "components" / "tokenizer", tokenizer__json={})
    files = find(logged(tmp_path, {"transformers": flavor}, {**metadata, "system_prompt": "of the log"}))

    assert (files.task, files.model_type, files.system_prompt) == (CHAT, "bert", "of the log")
    assert (files.model, files.tokenizer) == (tmp_path / "model", tmp_path / "components" / "tokenizer")


def test_sentence_transformers_are_found(tmp_path):
    model = pretrained(tmp_path / "model.sentence_transformer", BERT, modules__json="[]")
    files = find(logged(tmp_path, {"sentence_transformers": {}}, {"task": EMBEDDINGS, "model_type": "bge-large"}))

    assert (files.task, files.model, files.metadata["model_type"]) == (EMBEDDINGS, model, "bge-large")


def adapter(folder, base, **more):
    return write(
        folder,
        adapter_config__json={"peft_type": "LORA", "base_model_name_or_path": str(base), **more},
        adapter_model__safetensors=None,
    )


def test_an_adapter_is_served_with_its_base_model(tmp_path):
    base = pretrained(tmp_path / "base", chat_template__jinja="{{ messages }}")
    files = find(adapter(tmp_path / "lora", base))

    assert (files.model, files.adapter, files.tokenizer, files.task) == (base, tmp_path / "lora", base, CHAT)
    write(tmp_path / "lora", tokenizer__json={}, aiquery__json={"task": COMPLETIONS, "system_prompt": "p"})
    files = find(tmp_path / "lora")
    assert (files.tokenizer, files.task, files.system_prompt) == (tmp_path / "lora", COMPLETIONS, "p")


def test_an_adapter_of_mlflow_is_served_with_the_base_model_it_names(tmp_path):
    base = pretrained(tmp_path / "base")
    adapter(tmp_path / "run" / "peft", base)
    flavor = {"inference_task": CHAT, "peft_adaptor": "peft", "local_base_model_path": str(base)}
    files = find(logged(tmp_path / "run", {"transformers": flavor}))

    assert (files.model, files.adapter) == (base, tmp_path / "run" / "peft")


def test_what_mlflow_writes_beside_an_adapter_is_no_base_model(tmp_path):
    base = pretrained(tmp_path / "base")
    pretrained(tmp_path / "run" / "model")
    adapter(tmp_path / "run" / "peft", base)
    flavor = {"inference_task": CHAT, "peft_adaptor": "peft", "model_binary": "model"}

    assert find(logged(tmp_path / "run", {"transformers": flavor})).model == base


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda at: write(at, config__json=LLAMA), "no weights as safetensors. Save it"),
        (lambda at: write(at, config__json=LLAMA, pytorch_model__bin=None), "only pytorch_model.bin, and reading that"),
        (lambda at: write(at, config__json="{", model__safetensors=None), "config.json cannot be read"),
        (lambda at: write(at, config__json="[]", model__safetensors=None), "must hold a JSON object"),
        (lambda at: pretrained(at, {"architectures": ["LlamaForSequenceClassification"]}), '{"task": "llm/v1/chat"}'),
        (lambda at: pretrained(at, {}), "cannot be told from its architecture ''"),
        (lambda at: pretrained(at, aiquery__json={"task": "chat"}), "must be one of llm/v1/chat"),
        (lambda at: pretrained(at, aiquery__json={"system_prompt": 3}), "must be a text"),
        (lambda at: write(at, MLmodel="{"), "MLmodel cannot be read"),
        (lambda at: write(at, MLmodel="x"), "not what MLflow writes"),
        (lambda at: adapter(at, "/nowhere"), "'/nowhere', where there is no config.json"),
        (lambda at: adapter(at, ""), "where there is no config.json"),
        (lambda at: adapter(at, at, peft_type="PREFIX_TUNING"), "of type PREFIX_TUNING: only LoRA"),
        (lambda at: logged(at, {"transformers": {"inference_task": CHAT, "model_binary": "model"}}), "cannot be read"),
        (lambda at: logged(at, {"transformers": {"inference_task": CHAT, "source_model_name": "x"}}), "is no config"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_sentence(tmp_path, make, why):
    with pytest.raises(ConfigurationError) as refused:
        find(make(tmp_path))

    assert why in str(refused.value)


def test_without_weights_a_description_is_enough(tmp_path):
    assert find(write(tmp_path, config__json=BERT), weights=False).task == EMBEDDINGS


@pytest.fixture
def save(llama, tmp_path, monkeypatch):
    """Log the tiny model with MLflow as its users do, and return the folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer
    logging.getLogger("mlflow").setLevel(logging.ERROR)

    def run(wrap=lambda model: model, **options):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = {"model": wrap(model), "tokenizer": tokenizer}
            mlflow.transformers.save_model(given, str(tmp_path / "logged"), pip_requirements=[], **options)
        return tmp_path / "logged"

    return run


@pytest.mark.parametrize("task", [CHAT, COMPLETIONS])
def test_what_mlflow_logs_is_found(save, task):
    files = find(save(task=task, metadata={"system_prompt": "Be kind."}))

    assert (files.task, files.model_type, files.system_prompt) == (task, "llama", "Be kind.")
    assert (files.model / "model.safetensors").is_file()
    assert (files.tokenizer / "tokenizer.json").is_file()
    assert files.config["hidden_size"] == 64


def test_an_ordinary_pipeline_that_mlflow_logs_stays_custom(save):
    assert find(save(task="text-generation")) is None


@pytest.mark.parametrize("named", [True, False], ids=["the base model is named", "its weights are written, too"])
def test_an_adapter_that_mlflow_logs_is_found(save, llama, named):
    peft = pytest.importorskip("peft", reason="peft is not installed: logged adapters are NOT tested")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    options = {"base_model_path": str(llama)} if named else {}
    files = find(save(lambda model: peft.get_peft_model(model, config), task=CHAT, **options))

    assert files.model == Path(llama)
    assert (files.adapter / "adapter_model.safetensors").is_file()

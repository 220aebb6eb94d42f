"""Foundation models as they lie on disk: what MLflow or Hugging Face wrote, and which part of it is what.

Only JSON and YAML are read, and weights are taken as safetensors alone: no file's own code is ever run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from aiquery_serving import hub
from aiquery_serving.endpoint.rules import require, require_one_of
from aiquery_serving.errors import ConfigurationError

CHAT, COMPLETIONS, EMBEDDINGS = TASKS = ("llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings")
#: Our own file in a model's folder: `task` and `system_prompt`.
NOTES: Final = "aiquery.json"

_FLAVORS = ("transformers", "sentence_transformers")
_CAUSAL = re.compile(r".*(ForCausalLM|LMHeadModel|ForConditionalGeneration)")
_ENCODING = re.compile(r".*(Model|ForMaskedLM|ForPreTraining)")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of one foundation model.

    Attributes:
        model: A folder in Hugging Face's format: config.json and *.safetensors.
        tokenizer: The folder with the tokenizer's files, often the same.
        task: `llm/v1/chat`, `llm/v1/completions` or `llm/v1/embeddings`.
        model_type: The architecture's name, such as `llama` or `bert`.
        adapter: The folder of a LoRA adapter that belongs to the model.
        system_prompt: What a conversation without a system message begins with.
        config: The model's config.json.
        metadata: What was noted when the model was logged with MLflow.
    """

    model: Path
    tokenizer: Path
    task: str
    model_type: str
    adapter: Path | None = None
    system_prompt: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


def find(path: Path, *, task: str | None = None, weights: bool = True) -> ModelFiles | None:
    """Return what a folder holds, or None when it is no foundation model.

    A foundation model is what MLflow logged with its transformers or sentence_transformers flavor and one of
    `TASKS`, a model's folder in Hugging Face's format, or the folder of a LoRA adapter whose base model is at hand.
    The task of the latter two is what `aiquery.json` beside them says, or else what the files look like.

    Args:
        path: The folder.
        task: What to use it for, whatever the files say.
        weights: Whether the weights have to be there already; without, only what describes the model.

    Raises:
        ConfigurationError: It is one that cannot be served: weights in a format that runs code, an adapter without
            its base model, a file that cannot be read. The message says what to do.
    """
    if task is not None:
        require_one_of("The task of a foundation model", task, TASKS)
    files = _found(path.expanduser(), weights=weights)
    if files and weights:
        _check_weights(files)
    return replace(files, task=task) if files and task else files


def _found(folder: Path, *, weights: bool) -> ModelFiles | None:
    if (folder / "MLmodel").is_file():
        return _logged(folder, weights=weights)
    if (folder / "config.json").is_file():
        return _pretrained(folder)
    if (folder / "adapter_config.json").is_file():
        return _adapted(folder, weights=weights)
    return None


def _logged(folder: Path, *, weights: bool) -> ModelFiles | None:
    """Return what MLflow wrote, if it is for one of our tasks: other pipelines stay custom models."""
    document = _mlmodel(folder / "MLmodel")
    metadata, flavors = document.get("metadata") or {}, document.get("flavors") or {}
    flavor = next((flavors[name] or {} for name in _FLAVORS if name in flavors), None)
    task = (flavor or {}).get("inference_task") or metadata.get("task")
    if flavor is None or task not in TASKS:
        return None
    if "transformers" not in flavors:
        return _noted(_pretrained(folder / "model.sentence_transformer", task), metadata)
    model, adapter = _base(folder, flavor, weights=weights)
    tokenizer = _tokenizer(folder, flavor, model)
    return replace(_noted(_pretrained(model, task), metadata), tokenizer=tokenizer, adapter=adapter)


def _noted(files: ModelFiles, metadata: Mapping[str, Any]) -> ModelFiles:
    prompt = metadata.get("system_prompt")
    return replace(files, metadata=metadata, system_prompt=files.system_prompt if prompt is None else str(prompt))


def _base(folder: Path, flavor: Mapping[str, Any], *, weights: bool) -> tuple[Path, Path | None]:
    """Return the folder of an MLflow model's weights, and that of its adapter if it has one."""
    if not flavor.get("peft_adaptor"):
        name, revision = str(flavor.get("source_model_name")), str(flavor.get("source_model_revision") or "")
        binary = flavor.get("model_binary")
        return (folder / binary if binary else _referred(name, revision, weights=weights)), None
    adapter = folder / flavor["peft_adaptor"]
    if path := flavor.get("local_base_model_path"):
        return _referred(path, weights=weights), adapter
    # Weights that MLflow wrote beside an adapter have the adapter's layers in them: they are no base model.
    return _adapted_model(adapter, weights=weights), adapter


def _tokenizer(folder: Path, flavor: Mapping[str, Any], model: Path) -> Path:
    logged = folder / "components" / "tokenizer"
    if logged.is_dir():
        return logged
    name, revision = flavor.get("tokenizer_name"), str(flavor.get("tokenizer_revision") or "")
    return _referred(name, revision, weights=False) if name else model


def _pretrained(folder: Path, task: str | None = None) -> ModelFiles:
    config, notes = _json(folder / "config.json"), _notes(folder)
    return ModelFiles(
        model=folder,
        tokenizer=folder,
        task=task or notes.get("task") or _looks_like(folder, config),
        model_type=str(config.get("model_type", "")),
        system_prompt=notes.get("system_prompt"),
        config=config,
    )


def _adapted(folder: Path, *, weights: bool) -> ModelFiles:
    """Return a LoRA adapter's base model with the adapter."""
    base, notes = _pretrained(_adapted_model(folder, weights=weights)), _notes(folder)
    own_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return replace(
        base,
        adapter=folder,
        tokenizer=folder if own_tokenizer else base.tokenizer,
        task=notes.get("task") or base.task,
        system_prompt=notes.get("system_prompt", base.system_prompt),
    )


def _adapted_model(adapter: Path, *, weights: bool) -> Path:
    config = _json(adapter / "adapter_config.json")
    require(
        config.get("peft_type") == "LORA",
        f"The adapter in {adapter} is of type {config.get('peft_type')}: only LoRA adapters can be served. Merge it"
        " into its model, and serve that.",
    )
    name = str(config.get("base_model_name_or_path") or "")
    return _referred(name, str(config.get("revision") or ""), weights=weights)


def _referred(name: str, revision: str = "", *, weights: bool) -> Path:
    """Return the folder of a model that files only name: a folder, or a name on a hub."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if hub.is_name(name):
        return hub.fetch(name, revision, weights=weights)
    raise ConfigurationError(
        f"The model's weights are said to be in {name!r}, where there is no config.json. Put the model there, or log"
        " it again with its weights (an adapter with base_model_path=…)."
    )


def _looks_like(folder: Path, config: Mapping[str, Any]) -> str:
    """Return what a Hugging Face folder is for, as far as its files tell."""
    if (folder / "modules.json").is_file():
        return EMBEDDINGS
    architecture = next(iter(config.get("architectures") or ()), "")
    if _CAUSAL.fullmatch(architecture):
        return CHAT if has_chat_template(folder) else COMPLETIONS
    require(
        _ENCODING.fullmatch(architecture),
        f"What the model in {folder} is for cannot be told from its architecture {architecture!r}. Write"
        f' {{"task": "{CHAT}"}} (or another of {", ".join(TASKS)}) to {NOTES} beside it.',
    )
    return EMBEDDINGS


def has_chat_template(folder: Path) -> bool:
    """Say whether a tokenizer's folder says how a conversation becomes a prompt."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(_json(config).get("chat_template"))


def _check_weights(files: ModelFiles) -> None:
    for folder in (files.model, files.adapter):
        if folder is None or any(folder.glob("*.safetensors")):
            continue
        others = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt*"), *folder.glob("*.h5")))
        raise ConfigurationError(
            f"The model in {folder} has no weights as safetensors"
            + (f", only {others[0]}, and reading that would run code that is in it" if others else "")
            + ". Save it with model.save_pretrained(folder), which writes safetensors."
        )


def _notes(folder: Path) -> dict[str, Any]:
    path = folder / NOTES
    notes = _json(path) if path.is_file() else {}
    if "task" in notes:
        require_one_of(f"task in {path}", notes["task"], TASKS)
    require(isinstance(notes.get("system_prompt", ""), str), f"system_prompt in {path} must be a text.")
    return notes


def _mlmodel(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    require(isinstance(content, dict), f"{path} is not what MLflow writes.")
    return dict(content)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    require(isinstance(content, dict), f"{path} must hold a JSON object.")
    return dict(content)

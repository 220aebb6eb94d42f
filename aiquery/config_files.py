"""Endpoints declared in YAML and JSON files: reads them, and says of a bad one which line breaks which rule."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import yaml
from pydantic import BaseModel

from aiquery_serving.endpoint import PROVIDER_BLOCKS
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.wire import Declaration, parse_create
from aiquery_serving.wire.forms import ConfigForm, CreateForm, ExternalModelForm

SUFFIXES: Final = (".yaml", ".yml", ".json")
Json: TypeAlias = dict[str, Any]

#: Members that Databricks or MLflow write into a declaration and that say nothing of the endpoint.
_IGNORED: Final = frozenset({"auto_capture_config", "budget_policy_id", "telemetry_config", "usage_policy_id"})
#: YAML 1.1 makes booleans of `on` and `no`, and dates of what looks like one: these are texts here, as in JSON.
_PLAIN_TEXTS: Final = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool")
_BOOLEAN: Final = re.compile(r"true|True|TRUE|false|False|FALSE")

#: Messages begin with the field that they are about, where they are about one.
_FIELD: Final = re.compile(r"[\w.\[\]]+: ")
_PATH: Final = re.compile(r"[\w.\[\]]+")
_STEP: Final = re.compile(r"\w+")
_QUOTED: Final = re.compile(r"'([^']+)'")
_FIELD_WORD: Final = re.compile(r"[a-z]+(?:_[a-z]+)+")


@dataclass(frozen=True, slots=True)
class DeclaredEndpoint:
    """One endpoint of a file.

    Attributes:
        body: The request body that creates it (contract B.2).
        declaration: What the body means.
        place: Where it stands, `folder/gpt.yaml:1`.
    """

    body: Json
    declaration: Declaration
    place: str

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self.declaration.name


def read_files(path: Path) -> list[DeclaredEndpoint]:
    """Read the endpoints that a file declares, or all files of a folder, in order of the files' names.

    Args:
        path: A `.yaml`, `.yml` or `.json` file, or a folder with any number of them. A file holds one
            declaration or several, as YAML documents or as a list.

    Raises:
        ConfigurationError: Something is wrong with any of them. Every fault has a line of its own in the
            message, with its file and line, the field, and the rule that is broken.
    """
    read, faults = [], []
    for file in _files(path):
        try:
            read += read_text(_text(file), str(file), secrets_in_clear=False)
        except ConfigurationError as error:
            faults.append(str(error))
    faults += _repeated(read)
    if faults:
        raise ConfigurationError("\n".join(faults))
    return read


def read_text(text: str, source: str, *, secrets_in_clear: bool) -> list[DeclaredEndpoint]:
    """Read the endpoints that a text declares.

    Args:
        text: YAML, of which JSON is a part.
        source: What to call the text in messages.
        secrets_in_clear: Whether a key may stand in it, rather than a reference to one.

    Raises:
        ConfigurationError: See `read_files`.
    """
    read, faults = [], []
    for node in _documents(text, source):
        try:
            read.append(_declared(node, source, secrets_in_clear=secrets_in_clear))
        except ConfigurationError as error:
            faults.append(str(error))
    if not read and not faults:
        faults = [f"{source}: declares no endpoint. Write at least its name and its config."]
    if faults:
        raise ConfigurationError("\n".join(faults))
    return read


class _Loader(yaml.SafeLoader):
    """YAML whose plain words are what they are in JSON, and whose keys are given once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        for key, count in Counter(_scalar(key) for key, _ in node.value).items():
            if count > 1 and key != "<<":
                line = next(key_node for key_node, _ in node.value if _scalar(key_node) == key).start_mark
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given {count} times", line)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _PLAIN_TEXTS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEAN, list("tTfF"))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigurationError(f"There is no file or folder '{path}'.")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ConfigurationError(f"The folder '{path}' declares no endpoint: it holds no {', '.join(SUFFIXES)} file.")
    return files


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: is not text in UTF-8 (byte {error.start}).") from error
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}.") from error


def _repeated(read: Iterable[DeclaredEndpoint]) -> Iterator[str]:
    places: dict[str, str] = {}
    for one in read:
        if first := places.get(one.name):
            yield f"{one.place}: name: endpoint '{one.name}' is declared in {first} already; declare it once."
        places.setdefault(one.name, one.place)


def _documents(text: str, source: str) -> list[yaml.Node]:
    """Return the declarations of a text; a list at the top holds several."""
    try:
        nodes = list(yaml.compose_all(text, _Loader))
    except yaml.YAMLError as error:
        raise _unreadable(error, source) from error
    except RecursionError as error:
        raise ConfigurationError(f"{source}: is nested too deeply to be read.") from error
    return [
        each
        for node in nodes
        if not _is_empty(node)
        for each in (node.value if isinstance(node, yaml.SequenceNode) else [node])
    ]


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _unreadable(error: yaml.YAMLError, source: str) -> ConfigurationError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return ConfigurationError(_in_line(source, mark.line + 1 if mark else 1, f"{what}."))


def _in_line(source: str, line: int, fault: str) -> str:
    return f"{source}:{line}: {' '.join(fault.split())}"


def _declared(node: yaml.Node, source: str, *, secrets_in_clear: bool) -> DeclaredEndpoint:
    place = f"{source}:{node.start_mark.line + 1}"
    body = _value(node, source)
    if not isinstance(body, dict):
        raise ConfigurationError(f"{place}: an endpoint is a mapping with a name and a config, not {_kind(body)}.")
    faults, declaration = list(_unknown(body, CreateForm, "")), None
    try:
        declaration = parse_create(body, stash=_allow_secret if secrets_in_clear else _refuse_secret)
    except ConfigurationError as error:
        faults += _split(str(error))
    if declaration is None or faults:
        # Outside the except block: the error may hold what the file holds.
        raise ConfigurationError("\n".join(_in_line(source, _line(node, fault), fault) for fault in faults))
    return DeclaredEndpoint(body, declaration, place)


def _value(node: yaml.Node, source: str) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _unreadable(error, source) from error
    except RecursionError as error:
        raise ConfigurationError(f"{source}: is nested too deeply to be read.") from error
    finally:
        loader.dispose()


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "a boolean"}.get(type(value), "a number")


def _allow_secret(_name: str, _value: str) -> str:
    return "{{secrets/given/in-clear}}"


def _refuse_secret(name: str, _value: str) -> str:
    entity, _, member = name.partition("/")
    raise ConfigurationError(
        f"served entity '{entity}': {member} is given in clear, and files are copied and committed. Store it with"
        f" `aiquery secrets put SCOPE KEY` and write {{{{secrets/SCOPE/KEY}}}}, or {{{{secrets/env/NAME}}}} for an"
        " environment variable."
    )


def _unknown(body: Mapping[str, Any], form: type[BaseModel], path: str) -> Iterator[str]:
    """Name the fields that nothing reads: the REST API ignores them, in a file they are misspelt."""
    known: dict[str, Any] = dict(form.model_fields)
    if form is ExternalModelForm:
        known |= dict.fromkeys(PROVIDER_BLOCKS.values())
    for field in form.model_fields.values():
        known |= dict.fromkeys(getattr(field.validation_alias, "choices", ()), field)
    for name, value in body.items():
        here = f"{path}.{name}".lstrip(".")
        if name in known:
            yield from _unknown_within(value, getattr(known[name], "annotation", None), here)
        elif name not in _IGNORED and not (form is ConfigForm and name == "name"):
            yield f"{here}: there is no such field; {path or 'an endpoint'} has {', '.join(sorted(form.model_fields))}."


def _unknown_within(value: object, annotation: Any, path: str) -> Iterator[str]:
    form = next(_forms(annotation), None)
    if form is None:
        return
    if isinstance(value, Mapping):
        yield from _unknown(value, form, path)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if isinstance(item, Mapping):
                yield from _unknown(item, form, f"{path}[{place}]")


def _forms(annotation: Any) -> Iterator[type[BaseModel]]:
    """Return the forms that an annotation names: `list[EntityForm] | None` names one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _forms(inner)


def _split(message: str) -> list[str]:
    """Return the faults of a message that tells several, each of which begins with its field."""
    faults = message.split("; ")
    return faults if all(_FIELD.match(fault) for fault in faults) else [message]


def _line(node: yaml.Node, fault: str) -> int:
    """Return the line that a fault is about: its field's, else one with a name or a field that it mentions."""
    path = _PATH.match(fault)
    found = _at(node, _STEP.findall(path[0])) if path else node
    if found is node:
        found = _mentioned(node, fault)
    return int(found.start_mark.line) + 1


def _at(node: yaml.Node, steps: Iterable[str]) -> yaml.Node:
    """Return the key or the item that a path leads to, or comes closest to."""
    found = node
    for step in steps:
        entry = next((pair for pair in _entries(node) if _scalar(pair[0]) == step), None)
        if entry is None:
            break
        found, node = entry
    return found


def _mentioned(node: yaml.Node, fault: str) -> yaml.Node:
    names, fields = set(_QUOTED.findall(fault)), set(_FIELD_WORD.findall(fault))
    mappings = [list(_entries(inner)) for inner in _nodes(node) if isinstance(inner, yaml.MappingNode)]
    for entries in mappings:
        about = [key for key, _ in entries if _scalar(key) in fields]
        if about and names & {_scalar(value) for _, value in entries}:
            return about[0]
    every, words = list(itertools.chain(*mappings)), set(_STEP.findall(fault))
    found = (
        *(key for key, value in every if _scalar(value) in names),
        *(key for key, _ in every if _scalar(key) in fields),
        *(key for key, value in every if words.issuperset((_scalar(key), _scalar(value)))),
    )
    return next(iter(found), node)


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """Return a node and all below it, each once however often it is referred to."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += [value for _, value in reversed(list(_entries(node)))]


def _entries(node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Return the keys of a mapping, or the items of a sequence, and what they hold."""
    if isinstance(node, yaml.MappingNode):
        yield from node.value
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield yaml.ScalarNode("", str(place), item.start_mark), item


def _scalar(node: yaml.Node) -> str | None:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else None

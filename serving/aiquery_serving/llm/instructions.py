"""What is put in front of a text before it is embedded, so that the model knows what the embedding is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from aiquery_serving.llm.model_json import read_json

#: Where sentence-transformers keeps a model's own prompts.
FILE = "config_sentence_transformers.json"


def with_instruction(text: str, instruction: str) -> str:
    """Put an instruction in front of a text, with a space where two words would else become one.

    Examples:
        >>> with_instruction("a red bicycle", "Represent this sentence for searching relevant passages: ")
        'Represent this sentence for searching relevant passages: a red bicycle'
        >>> with_instruction("a red bicycle", "Find"), with_instruction("a red bicycle", "Query:")
        ('Find a red bicycle', 'Query:a red bicycle')
    """
    are_words = instruction[-1:].isalnum() and text[:1].isalnum()
    return f"{instruction} {text}" if are_words else instruction + text


@dataclass(frozen=True, slots=True)
class Instructions:
    """The prompts that a model was trained with.

    Attributes:
        named: Its prompts by name, such as `query` and `document`.
        default: What every text begins with that comes without an instruction; mostly nothing.
    """

    named: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default: str = ""

    @classmethod
    def of(cls, folder: Path) -> Instructions:
        """Read what the model in a folder declares; nothing is declared where the file is not there.

        Raises:
            ModelError: The file cannot be read.
        """
        declared = read_json(folder / FILE) or {}
        named = declared.get("prompts") or {}
        return cls(MappingProxyType(named), named.get(declared.get("default_prompt_name"), ""))

    def apply(self, text: str, instruction: str | None = None) -> str:
        """Put in front of a text what a request asks for: an instruction, or one of the model's prompts by its name.

        Examples:
            >>> model = Instructions({"query": "Search: ", "document": ""}, default="Note: ")
            >>> model.apply("red", "query"), model.apply("red", "Colour: "), model.apply("red"), model.apply("red", "")
            ('Search: red', 'Colour: red', 'Note: red', 'red')
        """
        asked = self.default if instruction is None else self.named.get(instruction, instruction)
        return with_instruction(text, asked)

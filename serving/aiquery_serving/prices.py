"""What tokens and calls cost: the list prices that come with aiquery, under the ones that the user gives."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from aiquery_serving.endpoint import PROVIDER_BLOCKS, ServedEntity
from aiquery_serving.errors import ConfigurationError

FILE: Final = "prices.toml"
_FIELDS = ("input", "output", "call")
_SECTIONS = ("endpoint", "entity", *PROVIDER_BLOCKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars: per million tokens in and out, and per call."""

    input: float = 0.0
    output: float = 0.0
    call: float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int, calls: int = 1) -> float:
        """Return what calls and their tokens cost, in dollars.

        Examples:
            >>> Price(input=0.15, output=0.6).cost(1_000_000, 500_000)
            0.45
        """
        tokens = self.input * prompt_tokens + self.output * completion_tokens
        return tokens / 1_000_000 + self.call * calls


class Prices:
    """Finds the price of what is served.

    Args:
        table: Sections of prices by name, in the form of `prices.toml`: `endpoint`, `entity` (a served entity or
            the registered model behind it), and one for each provider of external models. Names may be patterns.
        file: Where the table is kept, for error messages.
        under: The prices of what this table does not name.

    Raises:
        ConfigurationError: The table has a section, a field or a number that cannot be. The message names it.

    Examples:
        >>> Prices({"endpoint": {"my-*": {"call": 0.01}}}).of(ServedEntity(name="forest"), "my-forest")
        Price(input=0.0, output=0.0, call=0.01)
    """

    def __init__(self, table: Mapping[str, Any], *, file: str = FILE, under: Prices | None = None) -> None:
        self._sections = {name: _section(name, entries, file) for name, entries in table.items()}
        self._file, self._under = file, under
        self._found: dict[tuple[str | None, ...], Price | None] = {}

    @classmethod
    def load(cls, folder: Path | None) -> Prices:
        """Return the list prices, under those in the `prices.toml` of a workspace's folder if it has one.

        Raises:
            ConfigurationError: That file cannot be read, or says what cannot be.
        """
        listed = cls(tomllib.loads(files("aiquery_serving").joinpath(FILE).read_text(encoding="utf-8")))
        if folder is None:
            return cls({}, file=f"the {FILE} of a workspace that has a folder", under=listed)
        path = folder / FILE
        return cls(_parsed(path), file=str(path), under=listed)

    def of(self, served: ServedEntity, endpoint: str = "") -> Price | None:
        """Return what a served entity costs; None when nobody said. The endpoint's own price comes first.

        A language or embedding model of the user's own costs nothing unless somebody says so.
        """
        external = served.external_model
        provider, model = (external.provider, external.name) if external else (None, None)
        key = (endpoint, served.name, served.entity_name, provider, model)
        if key not in self._found:
            names = [("endpoint", endpoint), ("entity", served.name), ("entity", served.entity_name), (provider, model)]
            named = self._first([(section, name) for section, name in names if section and name])
            self._found[key] = Price() if named is None and served.foundation_model else named
        return self._found[key]

    def how_to_add(self, served: ServedEntity, endpoint: str = "") -> str:
        """Say which line gives a served entity its price, and where."""
        external = served.external_model
        if external is not None:
            section, name, fields = external.provider, external.name, "input = 1.0, output = 2.0"
        else:
            section, name = ("endpoint", endpoint) if endpoint else ("entity", served.name)
            fields = "input = 1.0, output = 2.0" if served.foundation_model else "call = 0.01"
        return (
            f"add {json.dumps(name)} = {{ {fields} }} under [{section}] to {self._file}, with your price in dollars "
            f"per {'million tokens' if served.task else 'call'}"
        )

    def _first(self, names: list[tuple[str, str]]) -> Price | None:
        for section, name in names:
            price = _matching(self._sections.get(section, {}), name)
            if price is not None:
                return price
        return self._under._first(names) if self._under is not None else None  # noqa: SLF001 - another of its kind


def _matching(prices: Mapping[str, Price], name: str) -> Price | None:
    """Return the price of a name: its own, or that of the longest pattern that fits."""
    if name in prices:
        return prices[name]
    fitting = [pattern for pattern in prices if fnmatchcase(name, pattern)]
    return prices[max(fitting, key=len)] if fitting else None


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}. Mend that line or delete the file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. Mend it or delete it.") from error


def _section(name: str, entries: Any, file: str) -> dict[str, Price]:
    if name not in _SECTIONS:
        raise ConfigurationError(f"{file}: nothing is called [{name}]; the sections are {', '.join(_SECTIONS)}.")
    if not isinstance(entries, Mapping):
        raise ConfigurationError(f"{file}: [{name}] must be a section with a price for each name, not {entries!r}.")
    return {model: _price(f"{file}: [{name}] {json.dumps(model)}", fields) for model, fields in entries.items()}


def _price(where: str, fields: Any) -> Price:
    if not isinstance(fields, Mapping) or not fields or not set(fields) <= set(_FIELDS):
        raise ConfigurationError(
            f"{where} must be a price such as {{ input = 0.15, output = 0.6 }}, in dollars per million tokens, or "
            "{ call = 0.01 }, in dollars per call. Put a name that has dots in quotes."
        )
    for field, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigurationError(f"{where}: {field} must be a number of dollars from 0 on, not {value!r}.")
    if ("input" in fields) != ("output" in fields):
        missing = "output" if "input" in fields else "input"
        raise ConfigurationError(f"{where}: {missing} is missing; give it as 0 if such tokens cost nothing.")
    return Price(**{field: float(value) for field, value in fields.items()})

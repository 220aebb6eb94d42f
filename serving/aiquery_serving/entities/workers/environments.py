"""A model's own virtual environment: built of its recorded requirements once, and kept for the next time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiquery_serving.entities.workers.process import apart, visible_variables
from aiquery_serving.errors import ConfigurationError, ModelError

#: The variable of a served entity that says who makes its environment, in MLflow's words.
VARIABLE = "AIQUERY_ENV_MANAGER"
LOCAL, VIRTUALENV, UV = MANAGERS = ("local", "virtualenv", "uv")
#: The oldest MLflow that our side of a model's process works with. It reads what older ones have written.
_OLDEST_MLFLOW = (3, 1)
#: What a model's process needs, and its requirements may not name. PyArrow 26 demands NumPy 2 without saying so to
#: whoever installs it, and models that want NumPy 1 need a Python older than 3.13. A newer MLflow than ours our side
#: has never met.
_NEEDED = {
    "numpy": "numpy",
    "orjson": "orjson",
    "pandas": "pandas",
    "pyarrow": "pyarrow<26" if sys.version_info < (3, 13) else "pyarrow",
    "mlflow-skinny": f"mlflow-skinny>={'.'.join(map(str, _OLDEST_MLFLOW))},<={version('mlflow-skinny')}",
}
#: What an environment's folder holds once everything is installed.
_COMPLETE = "complete"
#: Lines that are shown of an environment that cannot be built.
_LAST_LINES = 20

_UPPER_BOUND = re.compile(r"(?:==|~=|<=?)\s*(\d+)(?:\.(\d+))?")
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_COMMENT = re.compile(r"(^|\s)#.*")
_CREDENTIALS = re.compile(r"://[^/@\s]+@")

#: Takes a line of what is being done.
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How an environment is built: first of tools, then of a model's requirements and what its process needs."""

    model: Path
    name: str
    manager: str
    tools: Sequence[str]
    wanted: Sequence[str]

    @property
    def requirements(self) -> Path:
        return self.model / "requirements.txt"

    def fingerprint(self) -> str:
        """Return what two environments have in common that hold the same."""
        words = "\n".join([sys.implementation.cache_tag or "", sys.base_prefix, *self.tools, "", *self.wanted])
        digest = hashlib.sha256()
        for part in (words.encode(), *_contents(self.requirements)):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:20]

    def commands(self, place: Path) -> list[list[str]]:
        """Return what builds it at a place where nothing is."""
        make, install = self._by_uv(place) if self.manager == UV else _by_pip(place)
        return [make, *([*install, *words] for words in (self.tools, self.wanted) if words)]

    def _by_uv(self, place: Path) -> tuple[list[str], list[str]]:
        uv = _uv(self.name)
        make = [uv, "venv", "--no-progress", "--python", sys.executable, str(place)]
        return make, [uv, "pip", "install", "--no-progress", "--python", str(_python(place))]


def _by_pip(place: Path) -> tuple[list[str], list[str]]:
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    make = [sys.executable, "-m", "venv", str(place)]
    return make, [str(_python(place)), "-m", "pip", "install", *quiet]


def own_environment(name: str, environment: Mapping[str, str]) -> bool:
    """Say whether a served entity's variables ask for an environment of the model's own.

    Examples:
        >>> own_environment("m", {}), own_environment("m", {"AIQUERY_ENV_MANAGER": "virtualenv"})
        (False, True)

    Raises:
        ConfigurationError: They ask for what there is not.
    """
    manager = environment.get(VARIABLE, LOCAL)
    if manager not in MANAGERS:
        raise ConfigurationError(
            f"Served entity {name!r}: {VARIABLE} must be one of {', '.join(MANAGERS)}; got {manager!r}"
        )
    return manager != LOCAL


def model_python(
    model: Path, *, name: str, environment: Mapping[str, str], say: Say, home: Path | None = None
) -> Path | None:
    """Return the Python of a model's own environment, built if it is not there yet; None if it has none.

    Several models with the same requirements share one, and several processes may ask for it at once.

    Args:
        model: The folder that MLflow wrote.
        name: What errors call the model.
        environment: The served entity's variables; whoever installs has them, too (`PIP_INDEX_URL` for one).
        say: Called with the lines that the installation writes.
        home: The folder below which environments are kept; the user's cache unless given.

    Raises:
        ConfigurationError: The model's requirements are not known, or are for another Python.
        ModelError: The environment cannot be built; with the last lines that were written.
    """
    if not own_environment(name, environment):
        return None
    recipe = _recipe(model, name, environment[VARIABLE])
    folder = (home or _cache()) / "environments"
    place = folder / recipe.fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_complete(place):
            with _locked(place.with_suffix(".lock"), say) as lock:
                if not _is_complete(place):
                    _build(recipe, place, {**visible_variables(), **environment}, say, lock)
    except OSError as error:
        raise ModelError(f"Model {name!r} could not be loaded: its environment cannot be built: {error}") from error
    return _python(place)


def _recipe(model: Path, name: str, manager: str) -> _Recipe:
    requirements = model / "requirements.txt"
    if not requirements.is_file():
        raise ConfigurationError(
            f"Model {name!r} has no requirements.txt to build an environment of. Log it again, with "
            f"pip_requirements=[...], or leave {VARIABLE} out to run it with the packages that are here."
        )
    recorded = _python_env(model)
    _check_python(name, str(recorded.get("python") or ""))
    # MLflow records these because packages import them without saying so. Any pip will do.
    tools = [line for line in recorded.get("build_dependencies") or () if _canonical(line) != "pip"]
    return _Recipe(model, name, manager, tools, _wanted(requirements.read_text(encoding="utf-8")))


def _wanted(requirements: str) -> list[str]:
    r"""Return what is to be installed of a `requirements.txt`, and for our side, as arguments of `pip install`.

    Examples:
        >>> _wanted("mlflow\nnumpy==1.26\npyarrow\npandas")
        ['-r', 'requirements.txt', 'orjson']
        >>> _wanted("mlflow==2.14\nnumpy ; python_version > '3'  # ours\n-c limits.txt")[:3]
        ["numpy ; python_version > '3'", '-c', 'limits.txt']
    """
    lines = requirements.replace("\\\n", " ").splitlines()
    kept = [line for line in lines if not _is_old_mlflow(line)]
    named = {_canonical(line) for line in kept}
    if "mlflow" in named:  # which comes with mlflow-skinny
        named.add("mlflow-skinny")
    added = [line for package, line in _NEEDED.items() if package not in named]
    if kept == lines:
        return ["-r", "requirements.txt", *added]
    return [word for line in kept for word in _arguments(line)] + added


def _arguments(line: str) -> list[str]:
    words = shlex.split(line, comments=True) if line.startswith("-") else [_COMMENT.sub("", line).strip()]
    return list(filter(None, words))


def _is_old_mlflow(line: str) -> bool:
    """Say whether a line of requirements asks for an MLflow that is too old for our side.

    Examples:
        >>> [_is_old_mlflow(f"mlflow{text}") for text in ("==2.14.3", "<3,>=2.9", "[x]~=2.0", "==3.1.0", ">=2", "<4")]
        [True, True, True, False, False, False]
    """
    bounds = _UPPER_BOUND.findall(line.partition(";")[0]) if _canonical(line) in ("mlflow", "mlflow-skinny") else ()
    return any((int(major), int(minor or 0)) < _OLDEST_MLFLOW for major, minor in bounds)


def _python_env(model: Path) -> dict[str, Any]:
    """Return what MLflow wrote of the Python that a model was logged with."""
    import yaml

    file = model / "python_env.yaml"
    # Texts only: 3.10 is no number.
    found = yaml.load(file.read_bytes(), yaml.BaseLoader) if file.is_file() else {}  # noqa: S506
    return found if isinstance(found, dict) else {}


def _check_python(name: str, recorded: str) -> None:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if recorded and recorded.split(".")[:2] != ours.split("."):
        raise ConfigurationError(
            f"Model {name!r} was logged with Python {recorded}, and this is Python {ours}: an environment of its own "
            f"needs the same. Serve it with Python {recorded}, log it again, or leave {VARIABLE} out."
        )


def _contents(requirements: Path) -> Iterator[bytes]:
    """Yield all that decides what is installed: the requirements, and every file that they name."""
    files, seen = [requirements], set()
    while files:
        file = files.pop()
        if file in seen:
            continue
        seen.add(file)
        content = file.read_bytes()
        yield content
        if file.suffix == ".txt":
            files += _named_files(content.decode(errors="replace"), file.parent)


def _named_files(text: str, folder: Path) -> Iterator[Path]:
    for word in re.split(r"[\s=]+", text):
        file = folder / word.removeprefix("file://")
        with suppress(OSError, ValueError):  # most words name no file
            if file.is_file():
                yield file


def _canonical(line: str) -> str:
    """Return the name of the package that a line of requirements asks for.

    Examples:
        >>> _canonical("MLflow_Skinny[x]>=3  # ours"), _canonical("-c constraints.txt")
        ('mlflow-skinny', '')
    """
    found = _NAME.match(line)
    return re.sub(r"[-_.]+", "-", found[1]).lower() if found else ""


def _build(recipe: _Recipe, place: Path, variables: Mapping[str, str], say: Say, lock: int) -> None:
    """Build an environment where it is going to stay, for its scripts name that place."""
    shutil.rmtree(place, ignore_errors=True)  # of somebody who was killed over it
    try:
        for command in recipe.commands(place):
            _run(command, recipe, apart(variables, _python(place)), say, lock)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    (place / _COMPLETE).touch()


def _run(command: Sequence[str], recipe: _Recipe, variables: Mapping[str, str], say: Say, lock: int) -> None:
    shown = " ".join(command)
    say(f"Building the environment of model {recipe.name!r}: {shown}")
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(  # noqa: S603 - it is ours
        command,
        cwd=recipe.model,
        env=variables,
        pass_fds=[lock],  # if this process is killed, the lock stays with who goes on writing
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            last.append(_CREDENTIALS.sub("://***@", line.rstrip("\n")))
            say(last[-1])
    if process.returncode:
        said = "".join(f"\n  {line}" for line in last) or " It wrote nothing."
        raise ModelError(
            f"Model {recipe.name!r} could not be loaded: its environment cannot be built: `{shown}` ended with exit "
            f"code {process.returncode}. Its last lines:{said}"
        )


@contextmanager
def _locked(file: Path, say: Say) -> Iterator[int]:
    """Be the only one, of all threads and processes, that builds; wait while another one is."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Somebody else builds the environment already; waiting for that.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _is_complete(place: Path) -> bool:
    # An upgrade of the system's Python may leave a link that leads nowhere.
    return (place / _COMPLETE).is_file() and _python(place).exists()


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _uv(name: str) -> str:
    found = shutil.which(UV)
    if found is None:
        raise ConfigurationError(
            f"Served entity {name!r} has {VARIABLE}={UV}, and uv is not installed: pip install uv, or say {VIRTUALENV}."
        )
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aiquery"

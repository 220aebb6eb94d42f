"""What holds for the whole repository: one door, quick to import, small modules, three packages, drawn errors."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aiquery
import aiquery_serving
import aiquery_udfs
from aiquery_serving import errors

ROOT = Path(__file__).parents[2]
PACKAGES = {aiquery: ROOT / "aiquery", aiquery_udfs: ROOT / "udfs", aiquery_serving: ROOT / "serving"}
MODULES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
MOST_LINES = 400
VAGUE = {"base", "common", "core", "helper", "helpers", "misc", "shared", "tools", "util", "utils"}


def every_module() -> list[str]:
    return [
        found.name for package in PACKAGES for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]


@pytest.mark.parametrize("name", ["aiquery", *every_module()])
def test_public_names_are_sorted_and_there(name):
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert list(names) == sorted(names, key=lambda text: (not text.isupper(), not text[0].isupper(), text))
    assert [text for text in names if not hasattr(module, text)] == []


def test_dir_shows_the_public_names_and_nothing_else_can_be_had():
    assert dir(aiquery) == sorted(aiquery.__all__)
    with pytest.raises(AttributeError, match="'aiquery' has no attribute 'nothing'"):
        _ = aiquery.nothing


def test_import_aiquery_loads_no_engine_and_no_library():
    code = (
        "import json, sys, time\n"
        "before, began = set(sys.modules), time.perf_counter()\n"
        "import aiquery\n"
        "print(json.dumps([time.perf_counter() - began, sorted(set(sys.modules) - before)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(map(str, [ROOT, ROOT / "udfs", ROOT / "serving"]))},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seconds, loaded = json.loads(done.stdout)
    heads = {name.partition(".")[0] for name in loaded}
    assert not heads - set(sys.stdlib_module_names) - {"aiquery"}
    assert [name for name in loaded if name.startswith("aiquery")] == ["aiquery"]
    assert seconds < 0.5


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_long_or_vaguely_named(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert path.stem not in VAGUE


def test_the_wheel_holds_exactly_the_three_packages(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling is not installed: the wheel is NOT tested")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "aiquery = aiquery.deployments" in opened.read(entry_points).decode()
    heads = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert heads == {package.__name__ for package in PACKAGES}
    bases = {"aiquery": ROOT, "aiquery_udfs": ROOT / "udfs", "aiquery_serving": ROOT / "serving"}
    packed = {bases[name.partition("/")[0]] / name for name in names if name.endswith(".py")}
    assert packed == set(MODULES)
    assert {f"{head}/py.typed" for head in heads} <= set(names)


def tree(root: type) -> set[type]:
    return {root}.union(*(tree(child) for child in root.__subclasses__()))


def test_the_drawing_of_the_errors_is_the_tree_of_the_classes():
    drawn, parents = {}, {}
    line = re.compile(
        r"    (?P<stem>[ │├└─]*)(?P<name>\w+Error) +(?P<code>[A-Z_]+) +(?P<status>\d{3})(?P<retry>  retry)?"
    )
    for text in errors.__doc__.splitlines():
        if found := line.fullmatch(text):
            depth = len(found["stem"]) // 4
            parents[depth] = found["name"]
            parent = parents.get(depth - 1, "Exception")
            drawn[found["name"]] = (parent, found["code"], int(found["status"]), bool(found["retry"]))
    real = {
        kind.__name__: (kind.__base__.__name__, kind.error_code, kind.http_status, kind.retryable)
        for kind in tree(errors.AiQueryError)
        if kind.__module__ == errors.__name__
    }
    assert drawn == real


def test_every_error_is_at_home_where_errors_are_drawn():
    for name in every_module():
        importlib.import_module(name)
    homes = {"aiquery_serving.errors", "aiquery_udfs.errors"}
    ours = {kind for kind in tree(errors.AiQueryError) if kind.__module__.startswith("aiquery")}
    assert {kind.__name__ for kind in ours if kind.__module__ not in homes} <= set()
    assert {kind.__name__ for kind in ours if not re.fullmatch(r"\w+Error", kind.__name__)} == set()

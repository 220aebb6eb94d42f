"""Models in environments of their own: real ones, built of wheels that the tests make, without any index."""

from __future__ import annotations

import logging
import os
import re
import site
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import mlflow.pyfunc
import pytest

from aiquery_serving.entities.workers import load_in_process, own_environment
from aiquery_serving.entities.workers.environments import model_python
from aiquery_serving.errors import ConfigurationError, ModelError

pytestmark = pytest.mark.slow

OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
#: What the processes of all models need, and what MLflow writes into all requirements.
NEEDED = {
    "numpy": "9",
    "orjson": "9",
    "pandas": "9",
    "pyarrow": "25",
    **dict.fromkeys(("mlflow", "mlflow_skinny"), mlflow.__version__),
}


def wheel(folder, name, version, files=()):
    """Write a wheel that holds these files."""
    info = f"{name}-{version}.dist-info"
    files = {
        **dict(files),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder of all that is needed: in name only, but for a path to what is installed here, which comes last."""
    folder = tmp_path_factory.mktemp("wheels")
    borrowed = {"borrowed.pth": "\n".join(site.getsitepackages()) + "\n"}
    for name, version in NEEDED.items():
        wheel(folder, name, version, borrowed if name == "pandas" else ())
    for version in ("1", "2"):
        wheel(folder, "answers_of_ours", version, {"answers_of_ours.py": f"VERSION = {version!r}\n"})
    return folder


class Versions(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        import answers_of_ours

        print("asked of", answers_of_ours.VERSION)
        return [
            f"{answers_of_ours.VERSION} {word} {sys.prefix} {os.environ['VIRTUAL_ENV']}" for word in model_input["x"]
        ]


@pytest.fixture(scope="module")
def versions_path(registry, sign, wheels):
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        registry.log(
            "tests.versions",
            lambda model, **options: mlflow.pyfunc.log_model(python_model=model, **options),
            Versions(),
            signature=sign({"x": "string"}, ["string"]),
            pip_requirements=["answers_of_ours<2"],
        )
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    path = registry.models.path("tests.versions", "1")
    for name, version in re.findall(r"^- ([a-z]+)(?:==(\S+))?$", (path / "python_env.yaml").read_text(), re.MULTILINE):
        wheel(wheels, name, version or "1")  # the tools that MLflow found here
    return path


@pytest.fixture
def offline(wheels):
    """A served entity's variables: pip finds our wheels and nothing else."""
    return {
        "AIQUERY_ENV_MANAGER": "virtualenv",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }


def model_folder(folder, requirements="", python=OURS + ".1", tools=()):
    folder.mkdir()
    (folder / "requirements.txt").write_text(requirements)
    lines = [f"python: {python}", "build_dependencies:", *(f"- {tool}" for tool in tools), "dependencies:"]
    (folder / "python_env.yaml").write_text("\n".join([*lines, "- -r requirements.txt\n"]))
    return folder


# --- the real thing --------------------------------------------------------------------------------


def test_a_model_runs_in_an_environment_of_its_own_requirements(versions_path, offline, tmp_path):
    heard = []

    def load():
        return load_in_process(
            versions_path,
            name="v",
            environment=offline,
            home=tmp_path,
            on_line=lambda level, line: heard.append((level, line)),
        )

    model = load()
    try:
        (answer,) = model.query({"dataframe_records": [{"x": "hello"}]})["predictions"]
    finally:
        model.close()
    version, word, prefix, active = answer.split(" ")
    assert (version, word) == ("1", "hello"), "the requirements say <2"
    assert prefix == active
    assert Path(prefix).parent == tmp_path / "environments"
    text = "\n".join(line for level, line in heard if level == logging.INFO)
    assert "Building the environment of model 'v'" in text
    assert "Successfully installed answers_of_ours-1" in text.replace("answers-of-ours", "answers_of_ours")
    assert "asked of 1" in text

    heard.clear()
    load().close()
    assert not heard, "the second time it is there"


def test_what_pip_says_of_a_package_that_there_is_not_is_the_models_error(tmp_path, offline):
    folder = model_folder(tmp_path / "model", "no-such-package-of-ours==7\n")
    with pytest.raises(
        ModelError, match=r"(?s)'m' could not be loaded: its environment .* exit code 1.*no-such-package"
    ):
        model_python(folder, name="m", environment=offline, say=print, home=tmp_path)
    assert not [place for place in (tmp_path / "environments").iterdir() if place.is_dir()], "nothing is left of it"


# --- who builds, and when --------------------------------------------------------------------------

#: Notes what it is asked; makes an environment without anything, as slowly as is asked for.
UV = """#!{python}
import json, os, pathlib, subprocess, sys, time
with open({log!r}, "a") as log:
    print(json.dumps([*sys.argv[1:], os.getcwd(), os.environ.get("AIQUERY_SECRET_KEY"), os.environ.get("PYTHONPATH")]), file=log)
if sys.argv[1] == "venv":
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", sys.argv[-1]], check=True)
else:
    print("from https://ann:sesame@index.example/simple")
    time.sleep(float(os.environ.get("UV_NAP", 0)))
    sys.exit(int(os.environ.get("UV_EXIT", 0)))
"""


@pytest.fixture
def uv(tmp_path, monkeypatch):
    """A program of that name; returns what it was asked so far."""
    import json

    (tmp_path / "bin").mkdir()
    program, log = tmp_path / "bin" / "uv", tmp_path / "asked"
    program.write_text(UV.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


BY_UV = {"AIQUERY_ENV_MANAGER": "uv"}


def python_of(folder, home, environment=BY_UV, say=print):
    return model_python(folder, name="m", environment=environment, say=say, home=home)


def test_uv_is_asked_for_the_model_and_for_what_its_process_needs(tmp_path, uv, monkeypatch):
    monkeypatch.setenv("AIQUERY_SECRET_KEY", "k" * 44)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    folder = model_folder(tmp_path / "model", "scikit-learn==1.2\n")
    python = python_of(folder, tmp_path)
    made, filled = uv()
    place = str(python.parents[1])
    assert made == ["venv", "--no-progress", "--python", sys.executable, place, str(folder), None, None]
    assert filled[:8] == [
        "pip",
        "install",
        "--no-progress",
        "--python",
        str(python),
        "-r",
        "requirements.txt",
        "numpy",
    ]
    pyarrow = "pyarrow<26" if sys.version_info < (3, 13) else "pyarrow"
    assert filled[8:-3] == ["orjson", "pandas", pyarrow, f"mlflow-skinny>=3.1,<={mlflow.__version__}"]
    assert (
        subprocess.run(
            [python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
        ).stdout.strip()
        == place
    )


def test_the_tools_that_were_recorded_are_there_first(tmp_path, uv):
    folder = model_folder(tmp_path / "model", tools=["pip==23.2", "setuptools==65.5", "wheel"])
    python = python_of(folder, tmp_path)
    _, tools, rest = uv()
    assert tools[5:-3] == ["setuptools==65.5", "wheel"]
    assert rest[5] == "-r"
    assert python_of(model_folder(tmp_path / "other", tools=["wheel"]), tmp_path) != python


@pytest.mark.parametrize(
    ("line", "package"),
    [
        ("mlflow==3.1", "mlflow-skinny"),
        ("MLflow_Skinny [x] ; python_version > '3'", "mlflow-skinny"),
        ("pyarrow>=26", "pyarrow"),
    ],
)
def test_what_the_model_names_itself_is_the_models_choice(tmp_path, uv, line, package):
    python_of(model_folder(tmp_path / "model", f"# {package}\n{line}\n"), tmp_path)
    added = uv()[1][7:-3]
    assert len(added) == 4
    assert not [word for word in added if word.startswith(package)]


def test_an_mlflow_that_is_too_old_for_our_side_is_left_out(tmp_path, uv):
    python_of(model_folder(tmp_path / "model", "mlflow<3,>=2.9\nscikit-learn==1.2 ; python_version > '3'\n"), tmp_path)
    words = uv()[1][5:-3]
    assert words[0] == "scikit-learn==1.2 ; python_version > '3'"
    assert words[-1].startswith("mlflow-skinny>=3.1,<=")
    assert "-r" not in words


def test_the_same_requirements_share_an_environment_and_others_have_another(tmp_path, uv):
    def named(name, requirements, **files):
        folder = model_folder(tmp_path / name, requirements)
        for file, text in files.items():
            (folder / f"{file}.txt").write_text(text)
        return python_of(folder, tmp_path)

    first = named("one", "a==1\n-c constraints.txt\n", constraints="b<2")
    assert named("two", "a==1\n-c constraints.txt\n", constraints="b<2") == first
    assert len(uv()) == 2
    others = {
        named("three", "a==2\n-c constraints.txt\n", constraints="b<2"),
        named("four", "a==1\n-c constraints.txt\n", constraints="b<3"),
        named("five", "a==1\n-r constraints.txt\n", constraints="-r constraints.txt\n-r more.txt", more="c"),
        named("six", "a==1\n-r constraints.txt\n", constraints="-r constraints.txt\n-r more.txt", more="d"),
    }
    assert len(others - {first}) == 4


def test_a_wheel_that_changes_is_another_environment(tmp_path, uv, wheels):
    file = wheel(tmp_path, "own", "1")
    folder = model_folder(tmp_path / "model", f"own @ file://{file}\n")
    first = python_of(folder, tmp_path)
    wheel(tmp_path, "own", "1", {"own.py": "changed = True\n"})
    assert python_of(folder, tmp_path) != first


def test_those_who_want_it_at_once_have_it_built_once(tmp_path, uv):
    folder = model_folder(tmp_path / "model")
    found, heard = [], []
    want = {**BY_UV, "UV_NAP": "0.5"}
    threads = [
        threading.Thread(target=lambda: found.append(python_of(folder, tmp_path, want, heard.append))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(uv()) == 2
    assert sum("waiting for that" in line for line in heard) == 2


def test_one_that_was_not_finished_is_built_anew(tmp_path, uv):
    folder = model_folder(tmp_path / "model")
    python = python_of(folder, tmp_path)
    (python.parents[1] / "complete").unlink()
    (python.parents[1] / "half").touch()
    assert python_of(folder, tmp_path) == python
    assert not (python.parents[1] / "half").exists()
    assert len(uv()) == 4


def test_one_whose_python_is_gone_is_built_anew(tmp_path, uv):
    folder = model_folder(tmp_path / "model")
    python = python_of(folder, tmp_path)
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert python_of(folder, tmp_path).exists()
    assert len(uv()) == 4


def test_passwords_of_an_index_are_not_shown(tmp_path, uv):
    heard = []
    with pytest.raises(ModelError, match="exit code 3") as caught:
        python_of(model_folder(tmp_path / "model"), tmp_path, {**BY_UV, "UV_EXIT": "3"}, heard.append)
    assert "from https://***@index.example/simple" in str(caught.value)
    assert "sesame" not in str(caught.value) + "".join(heard)


# --- what cannot be --------------------------------------------------------------------------------


def test_another_python_is_refused_with_the_way_out(tmp_path):
    folder = model_folder(tmp_path / "model", python="3.1")
    with pytest.raises(ConfigurationError, match=rf"logged with Python 3\.1, and this is Python {OURS}"):
        python_of(folder, tmp_path)


def test_a_model_without_requirements_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no requirements\.txt"):
        python_of(tmp_path, tmp_path)


def test_uv_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="uv is not installed: pip install uv, or say virtualenv"):
        python_of(model_folder(tmp_path / "model"), tmp_path)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "environments").touch()
    with pytest.raises(ModelError, match=r"its environment cannot be built: .*environments"):
        python_of(model_folder(tmp_path / "model"), tmp_path)


def test_an_unknown_manager_is_refused():
    with pytest.raises(ConfigurationError, match="one of local, virtualenv, uv; got 'conda'"):
        own_environment("m", {"AIQUERY_ENV_MANAGER": "conda"})


def test_local_models_have_none(tmp_path):
    assert python_of(tmp_path, tmp_path, {"AIQUERY_ENV_MANAGER": "local"}) is None
    assert python_of(tmp_path, tmp_path, {}) is None

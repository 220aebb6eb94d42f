"""The code of README and docs runs, one document at a time, against a local provider."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from providers import KEY, CustomServer, OpenAIServer

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_code_runs(document, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LOCAL_LLM_TOKEN", KEY)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "AIQUERY_HOME"):
        monkeypatch.delenv(name, raising=False)
    names: dict = {}
    with OpenAIServer() as openai, CustomServer() as custom:
        for number, code in enumerate(BLOCK.findall(document.read_text())):
            here = (
                code.replace('"openai_config": {', f'"openai_config": {{"openai_api_base": "{openai.url}", ')
                .replace("http://127.0.0.1:8000/v1", custom.url)
                .replace("/tmp/aiquery-docs", str(tmp_path / "mlflow"))
            )
            exec(compile(here, f"{document.name}[{number}]", "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target

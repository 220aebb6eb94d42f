"""The same prompts through one library, as its documentation has it. Runs in that library's own environment.

    python rival_programs.py NAME URL ROWS DISTINCT

The key is in OPENAI_API_KEY. Prints the seconds that the call took and the rows that were answered, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

MODEL = "gpt-4o-mini"
#: What a library is told that it may do, where it wants to be told.
REQUESTS_A_MINUTE, TOKENS_A_MINUTE = 1_000_000, 1_000_000_000


def aiquery(url, prompts):
    import duckdb

    import aiquery
    from benchmarks.setting import chat_entity

    workspace, con = aiquery.Workspace(":memory:"), duckdb.connect()
    workspace.create_endpoint("chat", {"served_entities": [chat_entity(url)]})
    aiquery.register(con, workspace)
    con.execute("CREATE TABLE t AS SELECT unnest(?::VARCHAR[]) AS p", [prompts])
    return lambda: [row[0] for row in con.execute("SELECT ai_query('chat', p) FROM t").fetchall()]


def curator(url, prompts):
    os.environ |= {"CURATOR_CACHE_DIR": tempfile.mkdtemp(), "TELEMETRY_ENABLED": "false"}
    from bespokelabs import curator

    limits = {"max_requests_per_minute": REQUESTS_A_MINUTE, "max_tokens_per_minute": TOKENS_A_MINUTE}
    backend = {"base_url": url, "api_key": os.environ["OPENAI_API_KEY"], "max_concurrent_requests": 256, **limits}
    model = curator.LLM(model_name=MODEL, backend="openai", backend_params=backend)

    def ask():
        answer = model(prompts)
        return list(getattr(answer, "dataset", answer)["response"])

    return ask


def fenic(url, prompts):
    import fenic

    model = fenic.OpenAILanguageModel(
        model_name=MODEL, rpm=REQUESTS_A_MINUTE, tpm=TOKENS_A_MINUTE, base_url=url
    )  # fmt: skip
    config = fenic.SessionConfig(
        app_name="rival",
        db_path=Path(tempfile.mkdtemp()),
        semantic=fenic.SemanticConfig(language_models={"m": model}),
    )
    frame = fenic.Session.get_or_create(config).create_dataframe({"p": prompts})
    asked = frame.select(fenic.semantic.map("Answer: {{p}}", p=fenic.col("p")).alias("r"))
    return lambda: asked.to_pydict()["r"]


def litellm(url, prompts):
    import litellm

    def ask():
        answers = litellm.batch_completion(
            model=f"openai/{MODEL}", messages=[[{"role": "user", "content": p}] for p in prompts],
            api_base=url, api_key=os.environ["OPENAI_API_KEY"], max_workers=100,
        )  # fmt: skip
        return [None if isinstance(one, Exception) else one.choices[0].message.content for one in answers]

    return ask


def daft(url, prompts):
    import daft
    from daft.functions import prompt

    daft.set_provider("openai", base_url=url, api_key=os.environ["OPENAI_API_KEY"])
    asked = prompt(daft.col("p"), provider="openai", model=MODEL, use_chat_completions=True)
    frame = daft.from_pydict({"p": prompts}).with_column("r", asked)
    return lambda: frame.to_pydict()["r"]


PROGRAMS = {"aiquery": aiquery, "curator": curator, "fenic": fenic, "litellm": litellm, "daft": daft}

if __name__ == "__main__":
    name, url, rows, distinct = sys.argv[1:]
    ask = PROGRAMS[name](url, [f"Classify {i % int(distinct)}" for i in range(int(rows))])
    started = time.perf_counter()
    try:
        answered = sum(isinstance(answer, str) for answer in ask())
        failure = ""
    except Exception as error:  # noqa: BLE001 - whatever a library raises, its rows are lost
        answered, failure = 0, f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    print("\n" + json.dumps({"seconds": seconds, "rows": answered, "failure": failure}), flush=True)
    os._exit(0)  # some of them leave threads behind

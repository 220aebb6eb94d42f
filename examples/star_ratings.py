"""Ask a language model for a number per row, and keep its errors beside its answers.

    OPENAI_API_KEY=... python examples/star_ratings.py
    OPENAI_API_KEY=none OPENAI_BASE_URL=http://127.0.0.1:11434/v1 MODEL=llama3.2 python examples/star_ratings.py

The second line asks a server of your own: vLLM, llama.cpp, Ollama and others speak OpenAI's API.
"""

from __future__ import annotations

import os

import duckdb

import aiquery

REVIEWS = """
CREATE TABLE reviews AS FROM (VALUES
    (1, 'Best espresso in town, and the staff remember your name.'),
    (2, 'Cold coffee, cold welcome.'),
    (3, 'Fine.'),
    (4, 'I have not been there yet.'),
    (5, NULL)
) reviews(id, text)
"""
QUERY = """
SELECT id, text, rating.result AS stars, rating.errorMessage AS error
FROM (
    SELECT *, ai_query(
        'gpt',
        'How many stars, 1 to 5, does this review give? Answer with the digit alone. Review: ' || text,
        returnType => 'INT',
        failOnError => false,
        modelParameters => {max_tokens: 10}
    ) AS rating
    FROM reviews
)
ORDER BY id
"""


def declare(workspace: aiquery.Workspace) -> None:
    """Declare the endpoint: whose model it is, and how fast it may be asked."""
    model = {
        "provider": "openai",
        "name": os.environ.get("MODEL", "gpt-4o-mini"),
        "task": "llm/v1/chat",
        "openai_config": {
            "openai_api_key": "{{secrets/env/OPENAI_API_KEY}}",
            "openai_api_base": os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
        },
    }
    workspace.create_endpoint(
        "gpt",
        {"served_entities": [{"external_model": model}]},
        rate_limits=[{"calls": 500, "renewal_period": "minute"}],
    )


def main() -> None:
    """Rate five reviews; the one that says nothing of the place may get an error, and stops nobody."""
    with aiquery.Workspace(":memory:") as workspace:
        declare(workspace)
        con = duckdb.connect()
        aiquery.register(con, workspace=workspace)
        con.execute(REVIEWS)
        print(con.sql(QUERY))
        for used in workspace.usage():
            print("{calls} calls, {prompt_tokens} + {completion_tokens} tokens".format_map(used))


if __name__ == "__main__":
    main()

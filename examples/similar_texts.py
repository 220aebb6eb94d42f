"""Turn texts into embeddings once, then search by meaning in plain SQL.

    OPENAI_API_KEY=... python examples/similar_texts.py "How do I get my money back?"

`OPENAI_BASE_URL` and `MODEL` name another server that speaks OpenAI's API, and its model.
"""

from __future__ import annotations

import os
import sys

import duckdb

import aiquery

ARTICLES = """
CREATE TABLE articles AS FROM (VALUES
    ('Refunds', 'We return the price of any order within 30 days.'),
    ('Delivery', 'Parcels leave our house on weekdays before noon.'),
    ('Passwords', 'A forgotten password is replaced by mail.'),
    ('Gift cards', 'A card is valid for three years and can be used in parts.')
) articles(title, body)
"""
EMBED = "CREATE TABLE embedded AS SELECT *, ai_query('embeddings', body) AS embedding FROM articles"
SEARCH = """
WITH question AS (SELECT ai_query('embeddings', $question) AS embedding)
SELECT title, round(list_cosine_similarity(embedded.embedding, question.embedding), 3) AS similarity
FROM embedded, question
ORDER BY similarity DESC
LIMIT 3
"""


def declare(workspace: aiquery.Workspace) -> None:
    """Declare the endpoint. Its texts travel 40 a request."""
    model = {
        "provider": "openai",
        "name": os.environ.get("MODEL", "text-embedding-3-small"),
        "task": "llm/v1/embeddings",
        "openai_config": {
            "openai_api_key": "{{secrets/env/OPENAI_API_KEY}}",
            "openai_api_base": os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
        },
    }
    workspace.create_endpoint("embeddings", {"served_entities": [{"external_model": model}]})


def main() -> None:
    """Embed four articles with one request, and a question with another."""
    question = " ".join(sys.argv[1:]) or "How do I get my money back?"
    with aiquery.Workspace(":memory:") as workspace:
        declare(workspace)
        con = duckdb.connect()
        aiquery.register(con, workspace=workspace)
        con.execute(ARTICLES)
        con.execute(EMBED)
        print(question)
        print(con.sql(SEARCH, params={"question": question}))


if __name__ == "__main__":
    main()

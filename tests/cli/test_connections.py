"""`aiquery connections`: services by name, and never a key in clear."""

from __future__ import annotations

import pytest


def test_a_connection_is_created_listed_and_deleted(cli, ask_json):
    cli("secrets", "put", "jira", "token", given="t-very-secret")
    cli("connections", "create", "jira", "https://example.org/rest/", "--bearer", "jira/token", "--header", "X-Team: a")

    (found,) = ask_json("connections", "list")
    assert (found["name"], found["url"]) == ("jira", "https://example.org/rest")
    assert found["bearer_token"] == "{{secrets/jira/token}}"
    assert found["headers"] == {"X-Team": "a"}
    assert "t-very-secret" not in cli("connections", "list").output
    cli("connections", "delete", "jira")
    assert "There are no connections" in cli("connections", "list").stdout
    assert "does not exist" in cli("connections", "delete", "jira", code=3).output


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("a", "ftp://example.org"), 1, "starts with https://"),
        (("a", "http://169.254.169.254/latest"), 1, "link-local"),
        (("a b", "https://example.org"), 1, "not legal"),
        (("a", "https://example.org?x=1"), 1, "leave out"),
        (("a", "https://example.org", "--header", "X-Api-Key: sk-123"), 1, "is a key. Store it as a secret"),
        (("a", "https://example.org", "--header", "nothing"), 2, "NAME:VALUE"),
        (("a", "https://example.org", "--bearer", "nothing"), 2, "SCOPE/KEY"),
    ],
)
def test_what_cannot_be_a_connection_is_refused(cli, arguments, code, why):
    result = cli("connections", "create", *arguments, code=code)

    assert why in " ".join(result.output.split())
    assert "sk-123" not in result.output

"""`aiquery secrets`: values come in by standard input, and never go out."""

from __future__ import annotations

import pytest

VALUE = "sk-very-secret"


def test_a_secret_is_put_from_standard_input_listed_by_name_and_deleted(cli, ask_json, home):
    put = cli("secrets", "put", "openai", "key", given=f"{VALUE}\n")
    listed = cli("secrets", "list")

    assert ask_json("secrets", "list") == [{"scope": "openai", "key": "key", "reference": "{{secrets/openai/key}}"}]
    assert VALUE not in put.output + listed.output
    assert not any(VALUE.encode() in file.read_bytes() for file in home.iterdir())
    cli("secrets", "delete", "openai", "key")
    assert "There are no secrets" in cli("secrets", "list").stdout


def test_the_value_is_the_one_that_was_put(cli, home):
    import aiquery

    cli("secrets", "put", "a", "b", given=f"{VALUE}\r\n")
    with aiquery.Workspace(home) as workspace:
        assert workspace.secrets.get("a", "b") == VALUE


def test_a_value_on_the_command_line_is_taken_with_a_warning(cli):
    result = cli("secrets", "put", "a", "b", "--value", VALUE)
    assert "Warning: a value on the command line" in result.stderr
    assert VALUE not in result.output


@pytest.mark.parametrize(
    ("arguments", "given", "code", "told"),
    [
        (("put", "a", "b"), "", 2, "holds no value for a/b"),
        (("put", "a b", "c"), VALUE, 1, "scope and key take 1 to 128"),
        (("put", "env", "c"), VALUE, 1, "means the environment"),
        (("delete", "a", "b"), None, 3, "is not in this workspace"),
    ],
)
def test_what_cannot_be_is_told_without_the_value(cli, arguments, given, code, told):
    result = cli("secrets", *arguments, given=given, code=code)
    assert told in " ".join(result.stderr.replace("│", " ").split())
    assert VALUE not in result.output

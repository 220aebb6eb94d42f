"""`aiquery endpoints`: what files declare comes to be, what is bad changes nothing, and no secret is shown."""

from __future__ import annotations

import json

import pytest
from cli_declarations import declare, endpoint, model
from providers import KEY

import aiquery
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.models import Models


def split(server, first, second):
    entities = [
        {"name": "small", "external_model": model(server, "gpt-4o-mini")},
        {"name": "large", "external_model": model(server, "gpt-4o")},
    ]
    shares = {"small": first, "large": second}
    routes = [{"served_entity_name": name, "traffic_percentage": share} for name, share in shares.items()]
    return {"served_entities": entities, "traffic_config": {"routes": routes}}


def actions(result):
    return {row["name"]: row["action"] for row in json.loads(result.stdout)}


def apply(cli, folder, *options, code=0):
    return cli("endpoints", "apply", "-f", folder, "--output", "json", *options, code=code)


def test_without_endpoints_the_list_says_how_to_declare_one(cli):
    assert "There are no endpoints in" in cli("endpoints", "list").stdout


def test_the_second_apply_changes_nothing(cli, server, tmp_path):
    limits = [{"calls": 100, "renewal_period": "minute"}]
    gateway = {"rate_limits": [{"calls": 5, "key": "user", "renewal_period": "minute"}]}
    folder = declare(
        tmp_path / "declared",
        endpoint(server, "one", rate_limits=limits, tags=[{"key": "team", "value": "x"}]),
        endpoint(server, "two", config=split(server, 90, 10), ai_gateway=gateway, description="two models"),
    )

    assert actions(apply(cli, folder)) == {"one": "created", "two": "created"}
    assert actions(apply(cli, folder)) == {"one": "unchanged", "two": "unchanged"}


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"rate_limits": [{"calls": 7, "renewal_period": "minute"}]}, ["rate_limits"]),
        ({"tags": [{"key": "b", "value": "2"}]}, ["tags"]),
        ({"tags": []}, ["tags"]),
        ({"ai_gateway": {"fallback_config": {"enabled": True}}}, ["ai_gateway"]),
    ],
)
def test_apply_updates_what_differs_and_removes_what_is_left_out(request, cli, ask_json, changed, fields):
    server, tmp_path = (request.getfixturevalue(name) for name in ("server", "tmp_path"))
    before = endpoint(server, tags=[{"key": "a", "value": "1"}])
    after = before | changed
    apply(cli, declare(tmp_path / "declared", before))
    (told,) = json.loads(apply(cli, declare(tmp_path / "declared", after)).stdout)

    assert (told["action"], told["changed"]) == ("updated", fields)
    shown = ask_json("endpoints", "get", "gpt")
    assert shown["tags"] == after["tags"]
    assert shown["config"]["config_version"] == 1
    assert actions(apply(cli, tmp_path / "declared")) == {"gpt": "unchanged"}


def test_a_new_split_updates_the_config_and_another_order_of_routes_does_not(cli, ask_json, server, tmp_path):
    declare(tmp_path / "declared", endpoint(server, config=split(server, 90, 10)))
    apply(cli, tmp_path / "declared")
    other = split(server, 90, 10)
    other["traffic_config"]["routes"].reverse()
    assert actions(apply(cli, declare(tmp_path / "declared", endpoint(server, config=other)))) == {"gpt": "unchanged"}
    apply(cli, declare(tmp_path / "declared", endpoint(server, config=split(server, 50, 50))))

    assert ask_json("endpoints", "get", "gpt")["config"]["config_version"] == 2


def test_a_dry_run_shows_and_changes_nothing(cli, server, tmp_path):
    folder = declare(tmp_path / "declared", endpoint(server))
    assert actions(apply(cli, folder, "--dry-run")) == {"gpt": "would create"}
    assert json.loads(cli("endpoints", "list", "--output", "json").stdout) == []


def test_only_prune_deletes(cli, server, tmp_path):
    apply(cli, declare(tmp_path / "declared", endpoint(server, "one"), endpoint(server, "two")))
    (tmp_path / "declared" / "two.json").unlink()

    assert actions(apply(cli, tmp_path / "declared")) == {"one": "unchanged"}
    assert actions(apply(cli, tmp_path / "declared", "--prune", "--dry-run")) == {
        "one": "unchanged",
        "two": "would delete",
    }
    assert actions(apply(cli, tmp_path / "declared", "--prune")) == {"one": "unchanged", "two": "deleted"}


def test_one_bad_file_keeps_all_from_being_applied(cli, server, tmp_path):
    folder = declare(tmp_path / "declared", endpoint(server, "a"), endpoint(server, "c"))
    (folder / "b.yaml").write_text("name: b\nconfig:\n  served_entities: none\n")

    result = cli("endpoints", "apply", "-f", folder, code=1)

    assert result.stderr == f"Error: {folder}/b.yaml:3: config.served_entities: should be a list\n"
    assert cli("endpoints", "list", "--output", "csv").stdout == ""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"description": "new"}, "description of endpoint 'gpt' cannot change"),
        (
            {"config": {"served_entities": [{"entity_name": "a.b.c", "entity_version": "1"}]}},
            "an endpoint of external models",
        ),
    ],
)
def test_what_cannot_become_is_told_before_anything_changes(cli, server, tmp_path, body, told):
    apply(cli, declare(tmp_path / "declared", endpoint(server)))
    declare(tmp_path / "declared", endpoint(server, "another"), endpoint(server) | body)

    result = cli("endpoints", "apply", "-f", tmp_path / "declared", code=1)

    assert f"{tmp_path}/declared/gpt.json:1: {told}" in result.stderr
    assert "another" not in cli("endpoints", "list").stdout


def test_a_model_that_is_not_registered_is_told_before_anything_changes(cli, server, tmp_path, monkeypatch):
    def check(_self, name, _version):
        raise ConfigurationError(f"There is no registered model '{name}'.")

    monkeypatch.setattr(Models, "check", check)
    unknown = endpoint(server, "mine", config={"served_entities": [{"entity_name": "a.b.c", "entity_version": "1"}]})
    folder = declare(tmp_path / "declared", endpoint(server, "another"), unknown)

    assert "There is no registered model 'a.b.c'" in cli("endpoints", "apply", "-f", folder, code=1).stderr
    assert "another" not in cli("endpoints", "list").stdout


def test_an_endpoint_whose_secret_is_missing_is_reported_as_failed(cli, server, tmp_path):
    folder = declare(tmp_path / "declared", endpoint(server))
    result = apply(cli, folder)
    assert actions(result) == {"gpt": "created"}
    assert "Secret 'openai/key' is not in this workspace" in cli("query", "gpt", "-i", "{}", code=1).stderr


def test_create_and_update_mind_whether_the_endpoint_exists(cli, server, tmp_path):
    folder = declare(tmp_path / "declared", endpoint(server))
    file = folder / "gpt.json"

    assert "There is no endpoint 'gpt' to update" in cli("endpoints", "update", "-f", file, code=3).stderr
    assert "created" in cli("endpoints", "create", "-f", file).stdout
    assert "Endpoint 'gpt' exists already" in cli("endpoints", "create", "-f", file, code=1).stderr
    assert "unchanged" in cli("endpoints", "update", "-f", file).stdout


def test_a_key_may_be_piped_in_and_is_never_seen_again(cli, server, home):
    body = endpoint(server)
    external = body["config"]["served_entities"][0]["external_model"]
    external["openai_config"] = {"openai_api_base": server.url, "openai_api_key_plaintext": KEY}

    made = cli("endpoints", "create", "-f", "-", given=json.dumps(body))
    shown = [cli("endpoints", "get", "gpt", "--output", kind).stdout for kind in ("table", "json", "csv")]

    assert KEY not in "".join([made.output, *shown])
    assert "{{secrets/gpt/" in shown[1]
    hello = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    assert "echo: Hi" in cli("query", "gpt", "--input", hello).stdout


def test_values_of_the_environment_and_passwords_in_urls_are_hidden(cli, home, monkeypatch):
    monkeypatch.setattr(
        aiquery.Workspace,
        "get_endpoint",
        lambda *_: {
            "name": "mine", "state": {"ready": "READY", "config_update": "NOT_UPDATING"}, "description": "", "tags": [],
            "creator": "ada", "creation_timestamp": 1, "last_updated_timestamp": 1,
            "config": {
                "config_version": 1, "traffic_config": {"routes": []},
                "served_entities": [{
                    "name": "m", "entity_name": "a.b.c", "entity_version": "1",
                    "environment_vars": {"TOKEN": "sk-very-secret", "OTHER": "{{secrets/a/b}}"},
                    "url": "https://ada:sk-very-secret@example.com/v1",
                    "state": {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""},
                }],
            },
        },
    )  # fmt: skip
    shown = "".join(cli("endpoints", "get", "mine", "--output", kind).stdout for kind in ("table", "json", "csv"))

    assert "sk-very-secret" not in shown
    assert '"TOKEN": "(hidden)"' in shown
    assert "https://(hidden)@example.com/v1" in shown
    assert '"OTHER": "{{secrets/a/b}}"' in shown


def test_get_tells_what_is_served(cli, server, tmp_path):
    apply(cli, declare(tmp_path / "declared", endpoint(server, config=split(server, 90, 10))))
    shown = " ".join(cli("endpoints", "get", "gpt").stdout.split())

    assert "small gpt-4o-mini (openai) 90 % ready large gpt-4o (openai) 10 % ready" in shown


def test_delete_deletes_all_or_nothing(cli, server, tmp_path):
    apply(cli, declare(tmp_path / "declared", endpoint(server)))

    assert "'other' does not exist" in cli("endpoints", "delete", "gpt", "other", code=3).stderr
    assert "gpt" in cli("endpoints", "list").stdout
    assert "deleted" in cli("endpoints", "delete", "gpt").stdout
    cli("endpoints", "get", "gpt", code=3)


@pytest.mark.parametrize("command", ["apply", "create", "update"])
def test_a_file_that_is_not_there_is_not_found(cli, command):
    assert "There is no file or folder 'nowhere'" in cli("endpoints", command, "-f", "nowhere", code=3).stderr


def test_options_may_stand_before_the_command(cli, tmp_path):
    cli("--workspace", tmp_path / "elsewhere", "--output", "json", "endpoints", "list")
    assert (tmp_path / "elsewhere" / "workspace.db").exists()

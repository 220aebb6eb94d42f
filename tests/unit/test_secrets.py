"""The secret store: what it hides, whom it believes, what it says when it cannot."""

import base64
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.errors import SecretError
from aiquery_serving.secrets import Secrets, is_reference, reference
from aiquery_serving.store import Store

VALUE = "sk-a-very-recognisable-value"
NAMES = st.from_regex(r"[A-Za-z0-9_.@-]{1,20}", fullmatch=True).filter(lambda name: name != "env")


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("AIQUERY_SECRET_KEY", raising=False)


@pytest.fixture
def secrets(tmp_path):
    store = Store(tmp_path / "ws")
    yield Secrets(store, key=None)
    store.close()


def files_of(secrets):
    return [path for path in secrets._store.folder.rglob("*") if path.is_file()]


@given(scope=NAMES, key=NAMES, value=st.text())
def test_what_was_put_comes_back(scope, key, value):
    store = Store(None)
    secrets = Secrets(store, key=None)
    secrets.put(scope, key, value)
    assert secrets.get(scope, key) == value
    assert secrets.resolve(f"<{reference(scope, key)}>") == f"<{value}>"
    store.close()


def test_no_file_of_the_workspace_holds_the_value(secrets):
    secrets.put("prod", "openai", VALUE)
    spellings = [VALUE.encode(), base64.b64encode(VALUE.encode()), VALUE.encode().hex().encode()]
    contents = {path.name: path.read_bytes() for path in files_of(secrets)}
    assert {"workspace.db", "workspace.db-wal", "secret.key"} <= contents.keys()
    assert [name for name, data in contents.items() if any(s in data for s in spellings)] == []


def test_reprs_and_the_list_show_names_only(secrets):
    secrets.put("prod", "openai", VALUE)
    assert secrets.list() == (("prod", "openai"),)
    assert VALUE not in repr(secrets) + repr(vars(secrets)) + repr(secrets.list())


def test_only_the_owner_may_read_the_files(secrets):
    secrets.put("prod", "openai", VALUE)
    assert stat.S_IMODE(secrets._store.folder.stat().st_mode) == 0o700
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in files_of(secrets)}
    del modes[".gitignore"]
    assert set(modes.values()) == {0o600}


def test_the_key_file_is_made_once_and_shared(secrets):
    assert not (secrets._store.folder / "secret.key").exists()
    secrets.put("a", "b", VALUE)
    other_store = Store(secrets._store.folder)
    other = Secrets(other_store, key=None)
    other.put("c", "d", "w")
    assert other.get("a", "b") == VALUE
    assert secrets.get("c", "d") == "w"
    other_store.close()


def test_a_lost_race_for_the_key_file_keeps_the_winners_key(secrets, monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda self: False)  # both saw no file
    secrets.put("a", "b", VALUE)
    loser = Secrets(secrets._store, key=None)
    loser.put("c", "d", "w")
    assert (secrets.get("c", "d"), loser.get("a", "b")) == ("w", VALUE)
    assert not [path for path in files_of(secrets) if path.name.startswith(".secret")]


def wrong_key(folder):
    (folder / "secret.key").write_text(base64.b64encode(bytes(32)).decode())


def short_key(folder):
    (folder / "secret.key").write_text("c2hvcnQ=")


def no_key(folder):
    (folder / "secret.key").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (wrong_key, "sealed with another key than the one in '.*secret.key'"),
        (short_key, "The key in '.*secret.key' is not 32 bytes"),
        (no_key, "The key file '.*secret.key' is missing"),
    ],
)
def test_a_spoilt_key_file_is_named_and_the_value_is_not(secrets, spoil, says):
    secrets.put("prod", "openai", VALUE)
    spoil(secrets._store.folder)
    with pytest.raises(SecretError, match=says) as caught:
        secrets.get("prod", "openai")
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("spell", [base64.b64encode, base64.urlsafe_b64encode, bytes.hex])
@pytest.mark.parametrize("key", [bytes(range(32)), b"\xff\xfe" * 16])
def test_the_key_may_come_from_the_environment(monkeypatch, tmp_path, spell, key):
    text = spell(key)
    monkeypatch.setenv("AIQUERY_SECRET_KEY", text if isinstance(text, str) else text.decode())
    store = Store(tmp_path)
    Secrets(store, key=None).put("a", "b", VALUE)
    assert not (tmp_path / "secret.key").exists()
    assert Secrets(store, key=key).get("a", "b") == VALUE
    store.close()


def test_a_malformed_key_in_the_environment_is_not_repeated(monkeypatch, secrets):
    monkeypatch.setenv("AIQUERY_SECRET_KEY", "my-own-passphrase")
    with pytest.raises(SecretError, match="AIQUERY_SECRET_KEY is not 32 bytes") as caught:
        secrets.put("a", "b", VALUE)
    assert "my-own-passphrase" not in str(caught.value)


def test_a_key_of_another_length_is_refused():
    with pytest.raises(SecretError, match="needs 32 bytes, got 3"):
        Secrets(Store(None), key=b"abc")


def test_a_row_under_another_name_does_not_open(secrets):
    secrets.put("prod", "openai", VALUE)
    with secrets._store.write() as connection:
        connection.execute("UPDATE secrets SET key = 'other'")
    with pytest.raises(SecretError, match="'prod/other' was sealed with another key"):
        secrets.get("prod", "other")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("MY_TOKEN", "{{secrets/env/MY_TOKEN}}"),
        ("MY_TOKEN", "{{secrets/env/my_token}}"),
        ("AIQUERY_SECRET_PROD_OPEN_AI_KEY", "{{secrets/prod/open-ai.key}}"),
        ("AIQUERY_SECRET_PROD_KEY", "{{ secrets/prod/key }}"),
    ],
)
def test_the_environment_answers_for_what_is_not_stored(monkeypatch, secrets, variable, text):
    monkeypatch.setenv(variable, VALUE)
    assert secrets.resolve(text) == VALUE


def test_the_store_comes_before_the_environment(monkeypatch, secrets):
    monkeypatch.setenv("AIQUERY_SECRET_PROD_KEY", "from the environment")
    secrets.put("prod", "key", "stored")
    assert secrets.get("prod", "key") == "stored"


@pytest.mark.parametrize("text", ["", "plain", "{{other/a/b}}", "{secrets/a/b}", "{{secrets}}"])
def test_text_without_a_reference_stays(secrets, text):
    assert secrets.resolve(text) == text
    assert not is_reference(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{secrets/prod/openai}}", "'prod/openai' is not in this workspace.*AIQUERY_SECRET_PROD_OPENAI"),
        ("{{secrets/env/NO_SUCH_NAME}}", "environment variable NO_SUCH_NAME is not set"),
        ("{{secrets/prod}}", "names no secret"),
        ("{{secrets/a/b/c}}", "scope and key take 1 to 128"),
        ("{{secrets//b}}", "scope and key take 1 to 128"),
    ],
)
def test_a_secret_that_cannot_be_had_is_named(secrets, text, says):
    with pytest.raises(SecretError, match=says):
        secrets.resolve(text)


def test_deleting_forgets_one_secret_or_all_of_an_owner(secrets):
    for key, owner in [("a", ""), ("b", "one"), ("c", "one"), ("d", "two")]:
        secrets.put("s", key, VALUE, owner=owner)
    secrets.delete_owned("one")
    secrets.delete_owned("")
    assert secrets.list() == (("s", "a"), ("s", "d"))
    secrets.delete("s", "a")
    with pytest.raises(SecretError, match="'s/a' is not in this workspace"):
        secrets.delete("s", "a")


def test_the_scope_of_the_environment_cannot_be_written(secrets):
    with pytest.raises(SecretError, match="means the environment"):
        secrets.put("env", "A", VALUE)


def test_another_process_reads_the_secret(secrets):
    secrets.put("prod", "openai", VALUE)
    program = (
        "import sys; from aiquery_serving.store import Store; from aiquery_serving.secrets import Secrets;"
        "print(Secrets(Store(sys.argv[1]), key=None).get('prod', 'openai'))"
    )
    command = [sys.executable, "-c", program, str(secrets._store.folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert answer.stdout.strip() == VALUE

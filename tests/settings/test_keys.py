"""Keys come from the environment, else from env/.env, and no message shows one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from epicrisis.settings import InputError, keys, settings_from
from epicrisis.settings.keys import hand_on_keys, key, without_keys

ROOT = Path(__file__).parents[2]
SECRET = "hf_ThisIsNotForAnyonesEyes"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], Path]:
    """Writes env/.env."""
    path = tmp_path / "env" / ".env"
    monkeypatch.setattr(keys, "keys_file", lambda: path if path.exists() else None)

    def write(content: str | bytes) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_the_file_is_looked_for_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / ".env").write_text("")
    monkeypatch.chdir(tmp_path)
    assert keys.keys_file() == tmp_path / "env" / ".env"


def test_the_environment_goes_before_the_file(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    write("WANDB_API_KEY=of-the-file\nWANDB_ENTITY='a team'  # theirs\nexport HF_USERNAME=someone\nOTHER=x\n")
    assert key("WANDB_API_KEY") == "of-the-file"
    assert key("WANDB_ENTITY") == "a team"
    assert key("HF_USERNAME") == "someone"
    assert key("HF_UPLOAD_TOKEN") is None
    assert key("OTHER") is None
    monkeypatch.setenv("WANDB_API_KEY", "of-the-environment")
    assert key("WANDB_API_KEY") == "of-the-environment"
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert key("WANDB_API_KEY") is None


def test_a_mark_of_byte_order_is_no_part_of_a_name(write: Callable) -> None:
    write("\ufeffHF_USERNAME=someone\n")
    assert key("HF_USERNAME") == "someone"


def test_a_value_is_taken_letter_by_letter(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    write("WANDB_API_KEY=a${HOME}b\n")
    assert key("WANDB_API_KEY") == "a${HOME}b"


def test_only_what_libraries_look_up_is_handed_on(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    write("WANDB_API_KEY=k\nHF_DOWNLOAD_TOKEN=down\nHF_UPLOAD_TOKEN=up\nHF_USERNAME=someone\nWANDB_PROJECT_NAME=p\n")
    monkeypatch.setenv("WANDB_ENTITY", "mine")
    hand_on_keys()
    assert os.environ["WANDB_API_KEY"] == "k"
    assert os.environ["WANDB_ENTITY"] == "mine"
    assert os.environ["HF_TOKEN"] == "down"
    assert {"HF_UPLOAD_TOKEN", "HF_USERNAME", "HF_DOWNLOAD_TOKEN", "WANDB_PROJECT_NAME"}.isdisjoint(os.environ)
    assert key("HF_UPLOAD_TOKEN") == "up"


def test_a_token_of_huggingface_itself_stays(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import get_token

    monkeypatch.setenv("HF_TOKEN", "its-own")
    write("HF_DOWNLOAD_TOKEN=down\n")
    hand_on_keys()
    assert get_token() == "its-own"
    monkeypatch.delenv("HF_TOKEN")
    hand_on_keys()
    assert get_token() == "down"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (f"WANDB_API_KEY=fine\n{SECRET}\n", "line 2"),
        (f"WANDB_API_KEY '{SECRET}'\n", "line 1"),
        (f"# ours\nHF_UPLOAD_TOKEN='{SECRET}\n", "line 2"),
        (SECRET.encode() + b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_garbled_file_is_refused_without_its_content(write: Callable, content: str | bytes, where: str) -> None:
    path = write(content)
    with pytest.raises(InputError) as error:
        hand_on_keys()
    assert str(path) in str(error.value)
    assert where in str(error.value)
    assert SECRET[3:9] not in str(error.value)


def test_a_folder_in_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "keys_file", lambda: tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        key("HF_USERNAME")


def test_messages_are_cleaned_of_secrets(write: Callable) -> None:
    write(f"HF_UPLOAD_TOKEN={SECRET}\nHF_USERNAME=someone\n")
    said = without_keys(f"403 for someone with {SECRET} at https://me:{SECRET[::-1]}@host/path?a=b@c")
    assert said == "403 for someone with *** at https://***@host/path?a=b@c"


def test_the_example_names_every_key_with_no_value() -> None:
    lines = (ROOT / "env" / ".env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [f"{name}=" for name in keys.NAMES]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "env/.env" in ignored


def test_the_project_of_the_keys_is_the_default(write: Callable) -> None:
    with pytest.raises(InputError, match="WANDB_PROJECT_NAME"):
        settings_from({"wandb": {"enabled": True}})
    write("WANDB_PROJECT_NAME=ours\n")
    assert settings_from({"wandb": {"enabled": True}}).wandb.project is None


@pytest.mark.parametrize("uri", ["https://me:secret@host/mlflow", "postgresql://me:secret@host/db", "file:///runs"])
def test_addresses_that_configs_cannot_keep_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"mlflow\.tracking_uri") as error:
        settings_from({"mlflow": {"tracking_uri": uri}})
    assert "secret" not in str(error.value)


def test_messages_are_cleaned_though_the_file_has_been_spoilt(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    write("no key\n")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert without_keys(f"with {SECRET}") == "with ***"

"""A stage is done only for the inputs and settings it ran with."""

from pathlib import Path

import pytest

from epicrisis.tracking.stamps import changed_inputs, hash_of, mark_done, stage_done


def inputs(folder: Path) -> dict:
    return {
        "meds": folder / "meds",
        "style": "timeline@1",
        "budget": {"tokens": 512, "splits": ["train", "tuning"]},
    }


@pytest.fixture
def stamped(tmp_path: Path) -> Path:
    (tmp_path / "meds").mkdir()
    (tmp_path / "meds" / "0.parquet").write_bytes(b"events")
    (tmp_path / "tokens.arrow").write_bytes(b"tokens")
    mark_done(tmp_path, "prepare", inputs(tmp_path), outputs=[tmp_path / "tokens.arrow"])
    return tmp_path


def test_done_for_the_same_inputs(stamped: Path) -> None:
    assert stage_done(stamped, "prepare", inputs(stamped))
    assert changed_inputs(stamped, "prepare", inputs(stamped)) == []
    assert not stage_done(stamped, "pretrain", inputs(stamped))


def test_a_changed_setting_undoes_it(stamped: Path) -> None:
    changed = inputs(stamped) | {"budget": {"tokens": 1024, "splits": ["train", "tuning"]}}
    assert not stage_done(stamped, "prepare", changed)
    assert changed_inputs(stamped, "prepare", changed) == ["budget"]
    assert not stage_done(stamped, "prepare", inputs(stamped) | {"new": 1})


@pytest.mark.parametrize("change", ["edited", "added", "removed"])
def test_a_changed_input_file_undoes_it(stamped: Path, change: str) -> None:
    shard = stamped / "meds" / "0.parquet"
    if change == "edited":
        shard.write_bytes(b"evenTs")
    elif change == "added":
        (stamped / "meds" / "1.parquet").write_bytes(b"more")
    else:
        shard.unlink()
    assert not stage_done(stamped, "prepare", inputs(stamped))
    assert changed_inputs(stamped, "prepare", inputs(stamped)) == ["meds"]


def test_a_lost_or_cut_output_undoes_it(stamped: Path) -> None:
    (stamped / "tokens.arrow").write_bytes(b"tok")
    assert not stage_done(stamped, "prepare", inputs(stamped))
    (stamped / "tokens.arrow").unlink()
    assert not stage_done(stamped, "prepare", inputs(stamped))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"hash": 1, "outputs": null}'])
def test_an_unreadable_stamp_is_no_stamp(stamped: Path, content: str) -> None:
    (stamped / "stamps" / "prepare.json").write_text(content)
    assert not stage_done(stamped, "prepare", inputs(stamped))
    assert changed_inputs(stamped, "prepare", inputs(stamped)) == ["budget", "meds", "style"]


def test_the_order_of_keys_has_no_say_and_types_have() -> None:
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": "1"})
    assert hash_of({"a": Path("absent")}) != hash_of({"a": "absent"})

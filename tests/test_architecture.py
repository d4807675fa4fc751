"""Who may import whom, and what no module may be called."""

from pathlib import Path

from importlinter.cli import lint_imports_command

SOURCE = Path(__file__).parents[1] / "src"


def test_imports_go_down_only(monkeypatch):
    from click.testing import CliRunner

    monkeypatch.chdir(SOURCE.parent)
    result = CliRunner().invoke(lint_imports_command, ["--no-cache"])
    assert result.exit_code == 0, result.output


def test_every_module_is_named_after_its_topic():
    meaningless = {"utils", "helpers", "common", "misc", "base2"}
    assert not [path for path in SOURCE.rglob("*.py") if path.stem in meaningless]

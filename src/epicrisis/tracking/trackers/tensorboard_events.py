"""TensorBoard: event files in `tensorboard` below the run directory, which are sent nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from epicrisis.settings import Settings
from epicrisis.tracking.run_directory import RunDirectory


class TensorboardEvents:
    """A run's event files; a resumed run goes on in the same folder."""

    name = "tensorboard"

    def __init__(self, run: RunDirectory, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(run.path / "tensorboard"))
        self._step = 0

    def settings(self, resolved: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self._writer.add_text("config", _indented(resolved))
        self._writer.add_text("environment", _indented(environment))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._step = step
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def results(self, table: pl.DataFrame) -> None:
        rows = [table.columns, ["---"] * table.width, *table.rows()]
        lines = [f"| {' | '.join('' if value is None else str(value) for value in row)} |" for row in rows]
        self._writer.add_text("results", "\n".join(lines), self._step)

    def plots(self, files: Mapping[str, Path]) -> None:
        import numpy as np
        from PIL import Image

        for name, file in files.items():
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(f"plots/{name}", pixels, self._step, dataformats="HWC")

    def finish(self, ok: bool) -> None:
        self._writer.close()


def _indented(tree: Mapping[str, Any]) -> str:
    """YAML as Markdown shows it letter by letter."""
    text = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
    return "".join(f"    {line}\n" for line in text.splitlines())

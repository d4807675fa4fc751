"""`accelerate launch` as users call it, on CPU processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCH = "from accelerate.commands.accelerate_cli import main; main()"


def launch(
    script: str | Path, *arguments: object, recipe: str = "cpu_two_processes", flags: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a script by a recipe of configs/accelerate. more: variables of its environment."""
    command = ["launch", "--config_file", str(ROOT / "configs" / "accelerate" / f"{recipe}.yaml"), *flags, str(script)]
    return subprocess.run(
        [sys.executable, "-c", LAUNCH, *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            **more,
        },
    )

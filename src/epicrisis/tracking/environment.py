"""What a run ran on: versions, git commit, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    *(
        "epicrisis",
        "torch",
        "transformers",
        "peft",
        "trl",
        "accelerate",
        "bitsandbytes",
        "deepspeed",
        "unsloth",
        "datasets",
    ),
    *(
        "evaluate",
        "polars",
        "pyarrow",
        "numpy",
        "scikit-learn",
        "xgboost-cpu",
        "xgboost",
        "lightgbm",
        "pydantic",
        "omegaconf",
    ),
)


def environment() -> dict[str, Any]:
    """Versions, git commit and hardware. No host name, user name or path is recorded."""
    return {
        "python": platform.python_version(),
        "packages": _package_versions(),
        "git": git_state(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpu_names(),
    }


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state() -> dict[str, Any] | None:
    """The commit of the checkout the package runs from, and whether files differ; None outside of one."""
    here = Path(__file__).resolve().parent
    tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git(here, "rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    return {
        "commit": commit.strip(),
        "modified": bool((_git(here, "status", "--porcelain", "-uno") or "").strip()),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def _gpu_names() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

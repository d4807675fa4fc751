"""One module per command; the only place where the other rooms are wired together."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from epicrisis.settings.keys import hand_on_keys
from epicrisis.settings.problems import InputError

COMMANDS = {
    "synthesize": "write a synthetic MEDS cohort with labels and each subject's true risk",
    "prepare": "events and labels become narratives and token ids, with a coverage report",
    "train": "train any arm: pretrain or classify",
    "predict": "a finished run and a split become predictions",
    "generate": "a finished run writes: answers in words, continuations, risks from sampled futures",
    "evaluate": "a finished run's predictions become metrics with intervals, plots and a report",
    "benchmark": "many arms on the same rows become one table and one report",
    "fuse": "adapters become a stack, one adapter or merged weights, with a parity figure",
    "sweep": "search a sweep file's space without a server: trials, a ranking and the best config",
    "compare": "finished runs become one table, a plot of performance against size and REPORT.md",
    "push": "a run's adapter or model goes to the Hugging Face Hub, with a card made from its record",
    "check": "validate a config and its data, and say what a run would do; trains nothing",
}

NOT_OF_ONE_CONFIG = frozenset({"sweep", "compare", "push"})
"""Commands with arguments of their own: their modules have a `parser()` and `run(given, overrides)`."""

FLAGS = {
    "prepare": {
        "executor": ("prepare.executor", "local or dask"),
        "scheduler": ("prepare.scheduler", "address of a Dask scheduler"),
        "workers": ("prepare.workers", "processes on this machine"),
    }
}
"""Short forms of keys, per command."""


def main(argv: Sequence[str] | None = None) -> int:
    """`epicrisis <command> --config_filepath FILE [key=value …]`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] not in COMMANDS:
        print(f"epicrisis: there is no command {arguments[0]!r}\n\n{_overview()}", file=sys.stderr)
        return 2
    return run_command(arguments[0], arguments[1:])


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command on its own arguments: 0 where it went well, 2 with a message for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if name in NOT_OF_ONE_CONFIG:
            module = importlib.import_module(f"epicrisis.commands.{name}")
            given = module.parser().parse_known_args(arguments)
            hand_on_keys()
            module.run(*given)
        else:
            config_and_overrides = _config_and_overrides(name, arguments)  # --help ends here, before slow imports
            hand_on_keys()
            importlib.import_module(f"epicrisis.commands.{name}").run(*config_and_overrides)
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # every process of a launch finds the same
            print(f"epicrisis {name}: bad input", file=sys.stderr)
            print("\n".join(f"- {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    return 0


def _config_and_overrides(name: str, arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    parser = argparse.ArgumentParser(prog=f"epicrisis {name}", description=COMMANDS[name])
    parser.add_argument("--config_filepath", type=Path, help="a YAML file; see configs/")
    for flag, (key, what) in FLAGS.get(name, {}).items():
        parser.add_argument(f"--{flag}", help=f"{what}; the same as {key}=…")
    known, overrides = parser.parse_known_args(list(arguments))
    given = {key: getattr(known, flag) for flag, (key, _) in FLAGS.get(name, {}).items()}
    overrides += [f"{key}={value}" for key, value in given.items() if value is not None]
    return known.config_filepath, overrides


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "usage: epicrisis COMMAND --config_filepath FILE [section.key=value ...]\n\n" + "\n".join(lines)

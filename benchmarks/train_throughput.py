"""Tokens of narratives learnt per second: this engine, TRL's SFTTrainer padded and at its best, Unsloth's scripts.

    python benchmarks/train_throughput.py                                       # CPU, a Llama of a few million weights
    python benchmarks/train_throughput.py --load-in-4bit                        # the same in NF4
    python benchmarks/train_throughput.py --shape llama-3.1-8b --table FILE.md  # GPU: NF4, bf16, one lever per row

Everyone trains the same adapter from the same first weights on the same narratives, each narrative once, with AdamW at
the same rate. Useful tokens are those of narratives, padding left out. Contestants are processes of their own that take
turns; a median over the repeats counts. TRL's settings, Unsloth's and ours are chosen first, in one short run
each. Losses against tokens are drawn into one picture, and unseen narratives are scored at the end by the model's own
logits, so that nobody is fast by learning less.

On a CPU TRL is not run as it comes: the loss of its SFTTrainer (1.15) is a Triton kernel, which no CPU runs, and is
overridden by that of transformers' Trainer (train_contestants.py: with_the_models_loss).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from epicrisis.llm.forecast import flop_per_token, matmul_speed
from epicrisis.llm.memory import Shape
from shapes import PUBLISHED, SHAPES, config_of
from timing import finish
from train_cases import Case, Engine, Outcome, case_from, failed
from train_ground import ROWS, VOCABULARY, Ground, lay_ground

TARGET = 0.98
"""Against TRL's best settings; against padded batches it is PADDED_TARGET."""
PADDED_TARGET = 2.0


class Contestant:
    """A process that runs cases one after the other."""

    def __init__(self, folder: Path, log: Path):
        self._log = log.open("a")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("train_contestants.py")), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def run(self, case: Case) -> Outcome:
        """The case's outcome; where the process ends without one, the last line that it left says why."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            said = [text for text in Path(self._log.name).read_text().splitlines() if text.strip()]
            return failed(f"ended without a result ({said[-1].strip()[:160] if said else 'and without a word'})")
        return Outcome(**json.loads(line))

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


@contextmanager
def contestant(ground: Ground) -> Iterator[Contestant]:
    """A contestant for the time of a `with` block; what its libraries say goes to contestants.log."""
    process = Contestant(ground.folder, ground.folder / "contestants.log")
    try:
        yield process
    finally:
        process.end()


def padded_case(ground: Ground, **others: Any) -> Case:
    """TRL as it comes: batches of documents padded to their longest."""
    at_once = min(8, ground.step_documents)
    accumulated = math.ceil(ground.step_documents / at_once)
    case = Case("TRL padded", "trl", "", at_once, accumulated, ground.max_length)
    return replace(case, **others)


def candidates(ground: Ground, **others: Any) -> dict[str, list[Case]]:
    """Settings that each engine's best is chosen among; all train on the same objective."""
    padded = padded_case(ground, **others)
    alike = (("train_sampling_strategy", "group_by_length"),)
    free = (("padding_free", True), ("max_length", None))
    packed = [
        replace(padded, name=f"TRL bfd {size}", packing="bfd", at_once=size, accumulated=ROWS // size)
        for size in (1, 2, 4, 8)
    ]
    few = replace(padded, at_once=2, accumulated=math.ceil(ground.step_documents / 2))
    ours = [
        replace(packed[0], name=f"epicrisis {size}", engine="epicrisis", at_once=size, accumulated=ROWS // size)
        for size in (1, 2, 4, 8)
    ]
    chosen = {
        "epicrisis": ours,
        "TRL": [
            *packed,
            replace(packed[0], name="TRL bfd 1, loader process", more=(("dataloader_num_workers", 1),)),
            replace(padded, name="TRL by length", more=alike),
            replace(few, name="TRL by length 2", more=alike),
            replace(few, name="TRL padding-free 2", more=free),
        ],
    }
    if find_spec("unsloth") is not None:
        chosen["Unsloth"] = [
            replace(padded, name="Unsloth", engine="unsloth"),
            replace(few, name="Unsloth 2", engine="unsloth"),
            replace(packed[0], name="Unsloth packed 1", engine="unsloth"),
        ]
    return chosen


def compare(
    ground: Ground, repeats: int, choices: Path | None, **others: Any
) -> tuple[dict[str, list[Outcome]], dict[str, Case]]:
    """Each contestant's outcomes at its best settings, and those settings; repeats take turns.

    choices: a file that the chosen settings are kept in; where it is there, they are taken from it.
    """
    with ExitStack() as stack:
        names: list[Engine] = ["epicrisis", "trl"]
        if find_spec("unsloth"):
            names.append("unsloth")
        engines = {name: stack.enter_context(contestant(ground)) for name in names}
        for name, process in engines.items():  # nobody imports while others are timed
            process.run(Case("warm-up", name, "", ground.step_documents, 1, ground.max_length, ground.step_documents))
        if choices is not None and choices.is_file():
            best = {name: case_from(given) for name, given in json.loads(choices.read_text()).items()}
        else:
            best = choose(ground, engines, **others)
        if choices is not None:
            choices.write_text(json.dumps({name: asdict(case) for name, case in best.items()}))
        outcomes: dict[str, list[Outcome]] = {name: [] for name in best}
        for _, (name, case) in product(range(repeats), best.items()):
            outcome = engines[case.engine].run(case)
            if outcome.problem:
                raise SystemExit(f"{name}: {outcome.problem}")
            outcomes[name].append(outcome)
    return outcomes, best


def choose(ground: Ground, engines: Mapping[Engine, Contestant], **others: Any) -> dict[str, Case]:
    """TRL as it comes, and of each engine the settings that were fastest in a short run."""
    steps = min(3, ground.documents // ground.step_documents)
    best = {"TRL padded": padded_case(ground, **others)}
    for name, cases in candidates(ground, **others).items():
        short = [replace(case, documents=steps * ground.step_documents) for case in cases]
        best[name] = replace(_fastest(engines[cases[0].engine], short, steps), documents=None)
    return best


def _fastest(process: Contestant, cases: Sequence[Case], steps: int) -> Case:
    """The case whose short run had the most tokens per second, of those that took about `steps` steps as asked."""
    speeds = []
    for case in cases:
        outcome = process.run(case)
        taken = len(outcome.tokens)
        problem = outcome.problem
        if not problem and abs(taken - steps) > 1:
            problem = f"took {taken} steps for {steps}: it does not pack or batch as asked"
        speeds.append(0.0 if problem else outcome.tokens_per_second)
        print(f"  {case.name}: {problem or f'{speeds[-1]:,.0f} tokens/s'}", flush=True)
    if not max(speeds):
        raise SystemExit(f"none of {', '.join(case.name for case in cases)} runs here")
    return cases[int(np.argmax(speeds))]


def draw(outcomes: dict[str, list[Outcome]], file: Path) -> None:
    """Each contestant's loss against the useful tokens that it has seen, one line each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, runs in outcomes.items():
        axes.plot(np.cumsum(runs[0].tokens), runs[0].losses, label=name, linewidth=1.2)
    axes.set(xlabel="tokens of narratives seen", ylabel="loss per token")
    axes.legend()
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def levers(ground: Ground, *, load_in_4bit: bool, dtype: str) -> list[Case]:
    """One change from row to row: padded, packed, attention, gradient checkpointing, chunked loss; then the others.

    A row that cannot run here says why; the rows after the attentions take FlashAttention where it runs, else SDPA.
    """
    at_once = min(4, ROWS)
    shared: dict[str, Any] = {"max_length": ground.max_length, "dtype": dtype, "load_in_4bit": load_in_4bit}
    padded = Case(
        "padded", "epicrisis", "", at_once, math.ceil(ground.step_documents / at_once), loss="whole", **shared
    )
    packed = replace(padded, name="packed, SDPA", packing="bfd", accumulated=ROWS // at_once)
    flex = replace(packed, name="packed, flex_attention", attention="flex_attention")
    flash = replace(packed, name="packed, FlashAttention", attention="flash_attention_2")
    attention = "flash_attention_2" if find_spec("flash_attn") and torch.cuda.is_available() else "sdpa"
    checkpointed = replace(packed, name="+ gradient checkpointing", attention=attention, gradient_checkpointing=True)
    chunked = replace(checkpointed, name="+ chunked loss", loss="chunked")
    ours = [
        padded,
        packed,
        flex,
        flash,
        checkpointed,
        chunked,
        replace(chunked, name="chunked loss, no checkpointing", gradient_checkpointing=False),
    ]
    trl = replace(padded, name="TRL padded", engine="trl", loss="chunked", gradient_checkpointing=True)
    trl_packed = replace(trl, name="TRL packed", packing="bfd", attention=attention, at_once=1, accumulated=ROWS)
    others = [trl, trl_packed, replace(trl_packed, name="TRL packed, no checkpointing", gradient_checkpointing=False)]
    if find_spec("unsloth") is not None:
        unsloth = replace(trl, name="Unsloth", engine="unsloth")
        others += [unsloth, replace(unsloth, name="Unsloth packed", packing="bfd", at_once=1, accumulated=ROWS)]
    return ours + others


def pull(cases: Sequence[Case], ground: Ground) -> dict[str, Outcome]:
    """Each case in a process of its own, so that its peak memory is its own."""
    outcomes = {}
    for case in cases:
        with contestant(ground) as process:
            outcomes[case.name] = process.run(case)
        print(f"  {case.name}: {_in_words(outcomes[case.name])}", flush=True)
    return outcomes


def _in_words(outcome: Outcome) -> str:
    return outcome.problem or f"{outcome.tokens_per_second:,.0f} tokens/s, peak {outcome.peak_gb:.1f} GB"


def table_of(outcomes: dict[str, Outcome], flop: float, peak: float) -> str:
    """The outcomes as Markdown. flop: of one useful token, without recomputation; peak: FLOP/s of plain products."""
    lines = [
        "| row | useful tokens/s | share of the matrix peak | peak GB | loss of unseen narratives |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, outcome in outcomes.items():
        if outcome.problem:
            lines.append(f"| {name} | not run: {outcome.problem} | | | |")
            continue
        speed = outcome.tokens_per_second
        lines.append(
            f"| {name} | {speed:,.0f} | {speed * flop / peak:.1%} | {outcome.peak_gb:.1f} | {outcome.held_out:.4f} |"
        )
    return "\n".join(lines) + "\n"


def on_a_shape(arguments: argparse.Namespace, folder: Path) -> None:
    """The table of a shape, one lever per row."""
    on_gpu = torch.cuda.is_available()
    dtype = "bfloat16" if on_gpu else "float32"
    device = torch.device("cuda" if on_gpu else "cpu")
    ground = lay_ground(folder, arguments.shape, arguments.max_length, arguments.steps, getattr(torch, dtype))
    peak = matmul_speed(device, getattr(torch, dtype))
    flop = flop_per_token(Shape.of(config_of(arguments.shape, VOCABULARY)), ground.max_length, checkpointing=False)
    where = torch.cuda.get_device_name() if on_gpu else "CPU"
    precision = f"NF4, {dtype}" if on_gpu or arguments.load_in_4bit else dtype
    title = (
        f"{arguments.shape}, {precision}, on {where}: rows of {ground.max_length}, "
        f"{ground.tokens:,} tokens of narratives, matrix peak {peak / 1e12:.3g} TFLOP/s ({_versions()})"
    )
    print(title, flush=True)
    cases = levers(ground, load_in_4bit=on_gpu or arguments.load_in_4bit, dtype=dtype)
    if arguments.rows:
        cases = [case for case in cases if any(row in case.name for row in arguments.rows)]
    outcomes = pull(cases, ground)
    table = table_of(outcomes, flop, peak)
    print(table)
    if arguments.table:
        arguments.table.write_text(f"{title}\n\n{table}")
    speeds = {name: outcome.tokens_per_second for name, outcome in outcomes.items() if not outcome.problem}
    ours = max((speed for name, speed in speeds.items() if not _is_other(name)), default=0.0)
    theirs = max((speed for name, speed in speeds.items() if _is_other(name)), default=float("nan"))
    figures = {f"{name}_tokens_per_s": speed for name, speed in speeds.items()} | {"matrix_peak_tflops": peak / 1e12}
    finish(f"train_throughput_{arguments.shape}", ours / theirs, TARGET, figures)


def _is_other(name: str) -> bool:
    return name.startswith(("TRL", "Unsloth"))


def on_the_cpu(arguments: argparse.Namespace, folder: Path) -> None:
    """The comparison with a small Llama."""
    ground = lay_ground(folder, "small", arguments.max_length, arguments.steps, torch.float32)
    outcomes, best = compare(ground, arguments.repeats, arguments.choices, load_in_4bit=arguments.load_in_4bit)
    speeds = {name: median(run.tokens_per_second for run in runs) for name, runs in outcomes.items()}
    for name, runs in outcomes.items():
        spread = ", ".join(f"{run.tokens_per_second:,.0f}" for run in runs)
        print(
            f"{name} ({best[name].name}): {speeds[name]:,.0f} tokens/s ({spread}), {sum(runs[0].tokens):,} tokens in "
            f"{len(runs[0].tokens)} steps, loss of unseen narratives {runs[0].held_out:.4f}, {runs[0].peak_gb:.2f} GB"
        )
    draw(outcomes, arguments.plot)
    print(f"losses drawn to {arguments.plot}; {_versions()}; TRL with the model's own loss unless on a GPU")
    ours = speeds["epicrisis"]
    figures = {f"{name}_tokens_per_s".replace(" ", "_"): speed for name, speed in speeds.items()}
    figures |= {f"ratio_to_{name}".replace(" ", "_"): ours / speed for name, speed in speeds.items() if _is_other(name)}
    figures |= {f"{name}_held_out_loss".replace(" ", "_"): runs[0].held_out for name, runs in outcomes.items()}
    figures |= {"tokens": ground.tokens, "padded_target": PADDED_TARGET}
    suffix = "_nf4" if arguments.load_in_4bit else ""
    finish(f"train_throughput{suffix}", ours / speeds["TRL"], TARGET, figures)


def _versions() -> str:
    names = ("torch", "transformers", "peft", "trl", "unsloth", "bitsandbytes")
    return ", ".join(f"{name} {version(name)}" for name in names if find_spec(name) is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="one lever per row on a model of this shape")
    parser.add_argument("--max-length", type=int, help="tokens of a row (512; 2048 with --shape)")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contestant, of which the median counts")
    parser.add_argument("--load-in-4bit", action="store_true", help="NF4 on a CPU too")
    parser.add_argument("--rows", nargs="*", help="with --shape: only rows whose names hold one of these")
    parser.add_argument("--table", type=Path, help="with --shape: write the table as Markdown to this file")
    parser.add_argument("--choices", type=Path, help="keep the chosen settings in this file, or take them from it")
    parser.add_argument("--plot", type=Path, default=Path("train_losses.png"), help="where the losses are drawn")
    parser.add_argument("--folder", type=Path, help="keep base and narratives here, and use those that lie here")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: the first step warms up and is not counted, so ask for two or more")
    arguments.max_length = arguments.max_length or (2048 if arguments.shape in PUBLISHED else 512)
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        (on_a_shape if arguments.shape else on_the_cpu)(arguments, folder)


if __name__ == "__main__":
    main()

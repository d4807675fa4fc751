"""`epicrisis generate`: a finished run writes answers in words, continuations, or futures that become risks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from accelerate.utils import gather_object

from epicrisis.cohort import Cohort
from epicrisis.commands.processes import processes
from epicrisis.commands.train import open_inputs
from epicrisis.evaluation.bootstrap import bootstrap
from epicrisis.evaluation.predictions import binary_predictions, write_predictions
from epicrisis.settings import Settings, load_settings, merge, refuse, settings_from
from epicrisis.settings.load import parse_overrides, read_yaml
from epicrisis.tracking.progress import Bar, bar, say
from epicrisis.tracking.run_directory import RunDirectory, replacing

if TYPE_CHECKING:
    from epicrisis.llm.generate import Author

KEYS = ["subject_id", "prediction_time"]
FOLDER = "generation"
"""Where in the run directory everything is written that a run writes."""

_AT_ONCE = 20_000
"""So many continuations are held in memory before they are read or written."""


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Load the run of generation.run, write for the rows of evaluation.split, and keep that in the run directory."""
    settings = run_settings(config_filepath, overrides)
    refuse_unless_it_writes(settings)
    cohort, lookups = open_inputs(settings, processes(), training=False)
    rows = _rows(settings, cohort)
    from epicrisis.llm.generate import load_author

    assert settings.generation.run is not None  # run_settings has seen to it
    directory = RunDirectory(settings.generation.run)
    author = load_author(settings, lookups, directory.dir)
    modes: dict[str, Callable[..., dict[str, Any]]] = {
        "answer": _answer,
        "continue": _continue,
        "futures": _futures,
    }
    summary = modes[settings.generation.mode](author, cohort, rows, directory)
    if processes().is_main_process:
        asked = settings.resolved()["generation"]
        name = f"{settings.evaluation.split}.{settings.generation.mode}.json"
        directory.write_json(f"{FOLDER}/{name}", {"n_rows": rows.height, **summary, "settings": asked})


def run_settings(config_filepath: Path | None, overrides: Sequence[str]) -> Settings:
    """The config.yaml of generation.run with this config and the overrides laid over it."""
    own = merge(read_yaml(config_filepath) if config_filepath else {}, parse_overrides(overrides))
    given = load_settings(config_filepath, overrides, check_files=False).generation.run
    if given is None:
        raise refuse("generation.run", "names no run", "give the directory of a finished run")
    directory = RunDirectory(given)
    if not directory.finished:
        raise refuse("generation.run", f"{given} holds no finished run", "train it first")
    return settings_from(merge(read_yaml(directory.config), own))


def refuse_unless_it_writes(settings: Settings) -> None:
    """Raise InputError for a run that cannot write, or was not trained to write what is asked for."""
    if settings.arm != "llm":
        raise refuse("generation.run", f"its arm `{settings.arm}` writes nothing", "name a run of the arm llm")
    if settings.generation.mode == "answer" and settings.stage == "classify" and settings.model.head == "score":
        raise refuse(
            "generation.mode",
            "this run answers by a score head and was never taught to answer in words",
            "use `epicrisis predict`, or train one with model.head: label_tokens",
        )
    if settings.generation.engine == "vllm":
        from epicrisis.llm.vllm_engine import require_vllm, single_adapter

        require_vllm()
        single_adapter(settings)


def _rows(settings: Settings, cohort: Cohort) -> pl.DataFrame:
    rows = cohort.select(settings.evaluation.split)
    if rows.is_empty():
        raise refuse("evaluation.split", f"no row in {settings.evaluation.split}", "choose another split")
    most = settings.generation.max_rows
    if most is None or most >= rows.height:
        return rows
    return rows.sample(most, seed=settings.training.seed % 2**32).sort(KEYS)


def _answer(author: Author, cohort: Cohort, rows: pl.DataFrame, directory: RunDirectory) -> dict[str, Any]:
    from epicrisis.llm.generate import ANSWER_SCHEMA, answer, narratives_of

    settings = author.settings
    place = directory.dir / FOLDER / "answer"
    narratives = pl.Series(narratives_of(author, rows, cohort.history(rows), place))

    def work(places: np.ndarray, advance: Callable[[int], None]) -> pl.DataFrame:
        return answer(author, rows[places], narratives.gather(places).to_list(), advance)

    table = _shared(rows, work, ANSWER_SCHEMA, _AT_ONCE, "answer")
    said, alone = float(table["said"].is_not_null().mean()), float(table["said_only"].mean())  # type: ignore[arg-type]
    summary: dict[str, Any] = {"said_an_answer": said, "said_nothing_else": alone}
    _say(f"{said:.1%} of {rows.height} answers begin with one of {list(settings.model.answers)}, {alone:.1%} are one")
    _write(table, directory, settings, "answers")
    if cohort.task.kind == "binary" and len(settings.model.answers) == 2:
        probability = table["probabilities"].list.get(1).to_numpy()
        predictions = binary_predictions(rows, probability)
        folder = settings.evaluation.predictions_dir or directory.dir / FOLDER / "predictions"
        if processes().is_main_process:
            target = write_predictions(predictions, folder / f"{settings.evaluation.split}.parquet")
            _say(f"{rows.height} predictions in {target}")
        summary["auroc"] = _auroc(settings, rows, probability)
    return summary


def _continue(author: Author, cohort: Cohort, rows: pl.DataFrame, directory: RunDirectory) -> dict[str, Any]:
    from epicrisis.corpus.tokens import encode_narratives
    from epicrisis.llm.generate import CONTINUATION_SCHEMA, continue_on, decoding_of, narratives_of

    settings = author.settings
    decoding = decoding_of(settings.generation, settings.training.seed)
    place = directory.dir / FOLDER / "continue"
    narratives = pl.Series(narratives_of(author, rows, cohort.history(rows), place, decoding.max_new_tokens))

    def work(places: np.ndarray, advance: Callable[[int], None]) -> pl.DataFrame:
        prompts = encode_narratives(author.tokenizer, narratives.gather(places).to_list())
        return continue_on(author, prompts, rows[places], decoding, advance).drop("row")

    at_once = max(1, _AT_ONCE // settings.generation.n_samples)
    table = _shared(rows, work, CONTINUATION_SCHEMA, at_once, "continue")
    _write(table, directory, settings, "continuations")
    endings = table["ending"].value_counts().sort("ending")
    return {
        "n_continuations": table.height,
        "tokens_mean": float(table["n_tokens"].mean()),  # type: ignore[arg-type]
        "endings": dict(endings.iter_rows()),
    }


def _futures(author: Author, cohort: Cohort, rows: pl.DataFrame, directory: RunDirectory) -> dict[str, Any]:
    from epicrisis.llm.futures import RISK_SCHEMA, check_runs_forward, read_targets
    from epicrisis.llm.generate import decoding_of, lags_of, narratives_of, sampled_risks

    settings, narrator = author.settings, author.narrator
    check_runs_forward(narrator)
    targets = read_targets(settings.generation.targets, narrator)
    history = cohort.history(rows)
    room = (
        decoding_of(settings.generation, settings.training.seed).max_new_tokens + 1
    )  # and what follows the last event
    narratives = pl.Series(narratives_of(author, rows, history, directory.dir / FOLDER / "futures", room))
    lags = lags_of(narrator, rows, history)

    def work(places: np.ndarray, advance: Callable[[int], None]) -> pl.DataFrame:
        told = narratives.gather(places).to_list()
        return sampled_risks(author, rows[places], told, lags[places], targets, advance)

    at_once = max(1, _AT_ONCE // settings.generation.n_samples)
    table = _shared(rows, work, RISK_SCHEMA, at_once, "futures")
    _write(table, directory, settings, "futures")
    return {"targets": {target.name: _told(settings, cohort, rows, table, target.name) for target in targets}}


def _told(settings: Settings, cohort: Cohort, rows: pl.DataFrame, table: pl.DataFrame, name: str) -> dict[str, Any]:
    """One target's figures over all rows, and how its risks rank the task's labels where there are any."""
    risks = table.filter(pl.col("target") == name)
    n, known = int(risks["n_samples"].sum()), risks["probability"].is_not_null()
    unfinished, contradicted = (float(risks[key].sum() / n) for key in ("n_unfinished", "n_contradicted"))
    mean = risks["probability"].mean()
    figures: dict[str, Any] = {"mean_probability": mean, "unfinished": unfinished, "contradicted": contradicted}
    shown = "no row has one" if mean is None else f"{float(mean):.2%} on average"  # type: ignore[arg-type]
    _say(f"{name}: risk {shown}; of {n} futures {unfinished:.1%} unfinished, {contradicted:.1%} contradicted")
    if cohort.task.kind == "binary" and known.any():
        probability = risks.filter(known)["probability"].to_numpy()
        figures["auroc"] = _auroc(settings, rows.filter(known), probability, name)
    return figures


def _auroc(
    settings: Settings, rows: pl.DataFrame, probability: np.ndarray, name: str = "answer"
) -> dict[str, float | None]:
    draws = bootstrap(
        binary_predictions(rows, probability), settings.evaluation.bootstrap_resamples, settings.training.seed
    )
    found = draws.estimate("auroc")
    if found.value is not None:
        interval = f" ({found.lower:.3f} to {found.upper:.3f})" if found.lower is not None else ""
        _say(f"{name}: AUROC for the task's labels {found.value:.3f}{interval}, {rows.height} rows")
    return {"value": found.value, "lower": found.lower, "upper": found.upper}


def _shared(
    rows: pl.DataFrame,
    work: Callable[[np.ndarray, Callable[[int], None]], pl.DataFrame],
    schema: dict[str, Any],
    at_once: int,
    title: str,
) -> pl.DataFrame:
    """What `work` makes of the places of rows: each process does its share, `at_once` at a time; all get the whole."""
    state = processes()
    mine = np.arange(rows.height)[state.process_index :: state.num_processes]
    progress: AbstractContextManager[Bar] = bar(title, len(mine), shown=state.is_main_process)
    with progress as shown:
        parts = [work(mine[start : start + at_once], shown.advance) for start in range(0, len(mine), at_once)]
    tables = gather_object([pl.concat([pl.DataFrame(schema=schema), *parts])])
    return rows.select(KEYS).join(pl.concat(tables), on=KEYS, how="inner", maintain_order="left_right")


def _write(table: pl.DataFrame, directory: RunDirectory, settings: Settings, name: str) -> None:
    if processes().is_main_process:
        target = directory.dir / FOLDER / f"{settings.evaluation.split}.{name}.parquet"
        with replacing(target) as part:
            table.write_parquet(part, compression="zstd")
        _say(f"{table.height} rows in {target}")


def _say(text: str) -> None:
    if processes().is_main_process:
        say(text)

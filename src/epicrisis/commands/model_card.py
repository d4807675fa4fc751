"""The card of an uploaded model, made from its run's record: counts and figures, never a row."""

from __future__ import annotations

import re
from typing import Any

import polars as pl
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from epicrisis.commands.hub_files import Upload, is_path, without_paths
from epicrisis.commands.judging import ORACLE
from epicrisis.evaluation.comparison import Figures, markdown
from epicrisis.evaluation.judge import RESULTS_SCHEMA
from epicrisis.evaluation.report import heading
from epicrisis.narrative.coverage import FEWEST_SUBJECTS
from epicrisis.settings import refuse
from epicrisis.tracking.run_directory import RunDirectory
from epicrisis.tracking.run_record import PARAMETERS, TRAINED

LICENCES = {
    r"llama-?3\.3": "llama3.3",
    r"llama-?3\.2": "llama3.2",
    r"llama-?3\.1": "llama3.1",
    r"llama-?3(?![.\d])": "llama3",
    r"llama-?2(?![.\d])": "llama2",
    r"mistral-7b": "apache-2.0",
    r"biomednlp-|pubmedbert|bio_clinicalbert": "mit",
    r"bert-(base|large)": "apache-2.0",
    r"epicrisis/tiny-": "apache-2.0",
}
"""By what a base's name holds, its licence as the hub calls it, which goes for what is trained on it."""

_BASED = ("llm", "encoder", "frozen_encoder", "event_encoder")
"""Arms on a base that others have trained."""


def licence_of(config: dict[str, Any], given: str | None) -> str:
    """The licence that was given, or that of the base. Raises InputError where neither is known."""
    if given is not None:
        return given
    name = config["model"]["model_name"].lower() if config["arm"] in _BASED else ""
    for pattern, licence in LICENCES.items():
        if name and re.search(pattern, name):
            return licence
    of = f"of the base {without_paths(config['model']['model_name'])}" if name else "of a model without a base"
    raise refuse("--license", f"the licence {of} is not known", "give it, as the hub calls it: --license apache-2.0")


def model_card(run: RunDirectory, upload: Upload, repo_id: str, licence: str, fused: str | None) -> ModelCard:
    """README.md: front matter for the hub, and what a reader must know."""
    config, summary = upload.config, run.read_json(run.summary.name)
    results = _results(run)
    metadata = run.read_json(run.metadata.name)
    dataset = summary.get("dataset") or metadata.get("dataset") or "unnamed data"
    task = summary.get("task") or ("pretraining" if config["stage"] == "pretrain" else metadata.get("task") or "a task")
    data = ModelCardData(
        license=licence,
        language="en",
        library_name=_library(upload),
        base_model=_base(config),
        tags=["epicrisis", "electronic-health-records", str(config["arm"]), str(config["stage"])],
        model_name=repo_id.rpartition("/")[2],
        eval_results=_eval_results(results, str(dataset), str(task)) or None,
    )
    sections = [
        f"# {repo_id.rpartition('/')[2]}",
        _what_it_is(run, upload, str(dataset), str(task), licence, fused),
        "## Data",
        _data(summary, str(dataset), str(task), config),
        "## Figures",
        _figures(results, summary),
        "## How to use it",
        _use(upload, repo_id, config),
        "## Limits",
        _limits(upload),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _base(config: dict[str, Any]) -> str | None:
    """The hub's name of the base; None of one in a folder, which the hub would not know, and of models without."""
    name = config["model"]["model_name"]
    return None if config["arm"] not in _BASED or is_path(name) or name.startswith("epicrisis/") else name


def _library(upload: Upload) -> str:
    if any(upload.folder.rglob("adapter_config.json")):
        return "peft"
    has_transformer = any((place / "config.json").is_file() for place in upload.folder.rglob("encoder"))
    return "transformers" if has_transformer or any(upload.folder.glob("fused/*/model")) else "epicrisis"


def _results(run: RunDirectory) -> pl.DataFrame:
    """The run's own lines of results.csv; none of a pretraining."""
    if not run.results.is_file():
        return pl.DataFrame(schema=RESULTS_SCHEMA)
    results = pl.read_csv(run.results, schema_overrides=dict(RESULTS_SCHEMA))
    of_classes = pl.col("metric").str.contains(":", literal=True)  # of which few patients may have one
    return results.filter((pl.col("arm") != ORACLE) & pl.col("value").is_not_null() & ~of_classes)


def _eval_results(results: pl.DataFrame, dataset: str, task: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="other",
            task_name=task,
            dataset_type=re.sub(r"[^A-Za-z0-9._-]+", "-", dataset),
            dataset_name=dataset,
            dataset_split=split,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for split, metric, value in results.select("split", "metric", "value").iter_rows()
    ]


def _what_it_is(run: RunDirectory, upload: Upload, dataset: str, task: str, licence: str, fused: str | None) -> str:
    config = upload.config
    base = f" on `{without_paths(config['model']['model_name'])}`" if config["arm"] in _BASED else ""
    part = f" (fused: {fused})" if fused else ""
    what = f"A model of arm `{config['arm']}`{part}{base}, "
    what += "pretrained on" if config["stage"] == "pretrain" else f"trained to foretell *{task}* from"
    lines = [f"{what} the histories of patients in *{dataset}*, by epicrisis."]
    lines += ["Built with Llama."] if licence.startswith("llama") else []
    style = _style(upload)
    if style:
        lines.append(f"Histories are told in the style `{style}`; it answers to narratives of this style only.")
    sizes = run.read_json(run.hyperparameters.name)
    if PARAMETERS in sizes:
        lines.append(f"{sizes[PARAMETERS]:,} parameters, of which {sizes[TRAINED]:,} were trained.")
    version = run.read_json(run.metadata.name).get("version")
    lines += [f"Made with epicrisis {version}; `hyperparameters.json` holds what defines it."] if version else []
    return "\n".join(lines)


def _style(upload: Upload) -> str | None:
    """The narratives' style with its version."""
    for file in sorted(upload.folder.rglob("narrator.json")):
        return RunDirectory(file.parent).read_json(file.name)["style"]
    return None


def _data(summary: dict[str, Any], dataset: str, task: str, config: dict[str, Any]) -> str:
    lines = [f"*{dataset}*, task *{task}*. Only counts are told here; those below {FEWEST_SUBJECTS} are hidden."]
    splits = summary.get("splits") or []
    if splits:
        names = list(splits[0])
        rows = [[_count(line[name]) if name != "split" else str(line[name]) for name in names] for line in splits]
        lines += ["", *markdown(names, rows)]
    cutoff = config["data"].get("cutoff_months")
    if cutoff is not None:
        lines += ["", f"Nothing in the {cutoff} months before the index date was seen."]
    return "\n".join(lines)


def _count(n: Any) -> str:
    if not isinstance(n, int):
        return "–"
    return f"<{FEWEST_SUBJECTS}" if 0 < n < FEWEST_SUBJECTS else f"{n:,}"


def _figures(results: pl.DataFrame, summary: dict[str, Any]) -> str:
    columns = ("split", "metric", "value", "lower", "upper")
    found = [(split, heading(metric), str(Figures(*figures))) for split, metric, *figures in _rows(results, columns)]
    known = {(split, metric) for split, metric, *_ in _rows(results, columns)}
    for key, value in summary.get("metrics", {}).items():
        split, _, metric = key.partition("/")
        if isinstance(value, int | float) and (split, metric) not in known and ":" not in metric:
            found.append((split, heading(metric), f"{value:.3f}"))
    if not found:
        return "No figures were recorded."
    n = summary.get("n")
    judged = f"On {_count(n)} held_out rows of {_count(summary.get('n_subjects'))} patients. " if n else ""
    return f"{judged}Intervals are 95%, over resampled patients.\n\n" + "\n".join(
        markdown(["split", "metric", "value"], found)
    )


def _rows(results: pl.DataFrame, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return list(results.select(columns).iter_rows())


def _use(upload: Upload, repo_id: str, config: dict[str, Any]) -> str:
    place = "runs/downloaded"
    overrides = {key: f"{place}/{below}".rstrip("/") for key, below in upload.overrides.items()}
    if config["arm"] in _BASED and is_path(config["model"]["model_name"]):
        overrides["model.model_name"] = "<folder of the base>"
    more = "".join(f" \\\n  {key}={value}" for key, value in overrides.items())
    command = "predict" if config["stage"] != "pretrain" else "train"
    lines = [f"```bash\nhf download {repo_id} --local-dir {place}"]
    if command == "predict":
        lines.append(
            f"epicrisis predict --config_filepath {place}/config.yaml training.output_dir={place} \\\n"
            f"  data.meds_dir=<MEDS data> data.labels_dir=<labels>{more}"
        )
    else:
        key = "model.clinical_adapter" if config["arm"] == "llm" else f"{_section(config)}.pretrained"
        lines.append(f"epicrisis train --config_filepath <your classification config> {key}={place}")
    lines.append("```")
    text = "\n".join(lines)
    adapters = sorted(upload.folder.rglob("adapter_config.json"), reverse=True)
    if adapters:
        below = adapters[0].parent.relative_to(upload.folder).as_posix()
        text += f'\n\nWith PEFT alone: `PeftModel.from_pretrained(base, "{repo_id}", subfolder="{below}")`'
        text += ", which is one of its adapters: `predict` adds them up." if len(adapters) > 1 else "."
    return text


def _section(config: dict[str, Any]) -> str:
    return {"exmed_bert": "exmed", "event_encoder": "encoder"}.get(config["arm"], config["arm"])


def _limits(upload: Upload) -> str:
    lines = [
        "For research only: not a medical device, not for decisions about any patient. Its figures are those of the "
        "data above; elsewhere, and later, they will differ. A model trained on health records may repeat their "
        "biases, and may have kept some of what it read: share it as the data's own terms allow.",
    ]
    if upload.n_codes_left_out:
        lines.append(
            f"{upload.n_codes_left_out:,} codes that fewer than {FEWEST_SUBJECTS} train patients have are left out of "
            "the code book; they are told from the reader's own lookup tables."
        )
    return "\n\n".join(lines)

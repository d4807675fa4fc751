"""Classification: what is trained and what is left alone, and that what was saved answers as before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.events.synthetic import synthesize
from epicrisis.narrative import Lookups, load_lookups, shipped_lookup
from epicrisis.settings import InputError, Settings, settings_from
from epicrisis.settings.structured_section import OBJECTIVES, StructuredSettings
from epicrisis.structured.arm import FittedStructured, StructuredArm, beginning
from epicrisis.structured.batches import plain_batch
from epicrisis.structured.classify import Classifier, pooled
from epicrisis.structured.models import Body, build_model
from epicrisis.structured.pretrain import make_pretraining, pretrain
from epicrisis.structured.store import save_model, weights_of

VOCABULARY = 30
LAYERS = [name for name in OBJECTIVES if name != "lstm"]


class NoTokenizer:
    """All that a model's folder asks of a tokenizer."""

    label = "none@1"

    def save(self, directory: Path) -> None:
        """Nothing to keep."""


class Run:
    """A run directory that keeps no history."""

    def __init__(self, directory: Path):
        self.dir = directory

    def log(self, **fields: Any) -> None:
        """Nobody reads it."""


def settings_for(architecture: str, **changes: Any) -> Settings:
    tree: dict[str, Any] = {
        "arm": "structured",
        "stage": "classify",
        "structured": {"architecture": architecture, "size": "demo", "context": 32, "tokens_per_batch": 256},
        "lora": {"r": 4},
        "training": {"learning_rate": 5e-3, "batch_size": 8, "logging_steps": 100, "bf16": False},
    }
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return settings_from(tree, check_files=False)


@pytest.fixture
def pretrained(tmp_path: Path) -> Callable[..., Path]:
    """The folder of a model as pretraining leaves it."""

    def make(architecture: str, seed: int = 7) -> Path:
        settings = settings_for(architecture, **{"stage": "pretrain", "training.seed": seed, "training.batch_size": 4})
        module = make_pretraining(settings, VOCABULARY)
        about = {"stage": "pretrain", "body": module.body.config.saved(), "tokens": 0}
        save_model(tmp_path / "pre" / "model", weights_of(module), about, NoTokenizer())  # type: ignore[arg-type]
        return tmp_path / "pre"

    return make


def some_batch() -> Any:
    random = np.random.default_rng(0)
    return plain_batch([random.integers(7, VOCABULARY, length) for length in (4, 9, 20)])


def a_few_steps(module: Classifier) -> dict[str, torch.Tensor]:
    """Weights before; the module is trained."""
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    optimizer = torch.optim.AdamW([w for w in module.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module.train()(some_batch()), torch.tensor([0, 1, 1])).backward()
        optimizer.step()
    return before


# pooling


def test_pooling_reads_no_padding() -> None:
    states = torch.arange(24.0).reshape(2, 4, 3)
    states[1] = -states[1]
    batch = plain_batch([np.array([7, 8]), np.array([7, 8, 9, 10])])
    assert pooled(states, batch, "last").tolist() == [[3, 4, 5], [-21, -22, -23]]
    assert pooled(states, batch, "mean").tolist() == [[1.5, 2.5, 3.5], [-16.5, -17.5, -18.5]]
    assert pooled(states, batch, "max").tolist() == [[3, 4, 5], [-12, -13, -14]]


@pytest.mark.parametrize("architecture", list(OBJECTIVES))
def test_a_row_is_scored_alike_alone_and_among_others(architecture: str) -> None:
    module = beginning(settings_for(architecture), VOCABULARY, 2).eval()
    batch = some_batch()
    with torch.no_grad():
        together = module(batch)
        for row, length in enumerate(batch.lengths.tolist()):
            alone = plain_batch([batch.ids[row, :length].numpy()])
            torch.testing.assert_close(module(alone)[0], together[row], atol=1e-5, rtol=1e-4)


# what is trained


@pytest.mark.parametrize("architecture", list(OBJECTIVES))
def test_pretrained_weights_are_loaded_and_full_finetuning_moves_all(
    architecture: str, pretrained: Callable[..., Path]
) -> None:
    run = pretrained(architecture)
    untrained = beginning(settings_for(architecture), VOCABULARY, 2)
    loaded = beginning(settings_for(architecture, **{"structured.pretrained": run}), VOCABULARY, 2)
    theirs = make_pretraining(
        settings_for(architecture, **{"stage": "pretrain", "training.seed": 7, "training.batch_size": 4}), VOCABULARY
    ).body
    found = dict(loaded.body.named_parameters())
    assert all(torch.equal(found[name], weight) for name, weight in theirs.named_parameters())
    assert not torch.equal(untrained.body.embedding.weight[7], loaded.body.embedding.weight[7])
    before = a_few_steps(loaded)
    still = [name for name, weight in loaded.named_parameters() if torch.equal(weight, before[name])]
    assert not still


@pytest.mark.parametrize("architecture", list(OBJECTIVES))
def test_a_head_alone_leaves_the_body_untouched(architecture: str, pretrained: Callable[..., Path]) -> None:
    keys = {"structured.pretrained": pretrained(architecture), "structured.finetune": "head"}
    module = beginning(settings_for(architecture, **keys), VOCABULARY, 2)
    before = a_few_steps(module)
    moved = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {"score.weight", "score.bias"}
    assert not module.body.training


@pytest.mark.parametrize("architecture", LAYERS)
def test_lora_moves_every_adapter_and_nothing_else_of_the_body(
    architecture: str, pretrained: Callable[..., Path]
) -> None:
    keys = {"structured.pretrained": pretrained(architecture), "structured.finetune": "lora"}
    module = beginning(settings_for(architecture, **keys), VOCABULARY, 2)
    before = a_few_steps(module)
    moved = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    adapters = {name for name, _ in module.named_parameters() if "lora_" in name}
    assert adapters
    assert moved == adapters | {"score.weight", "score.bias"}
    with torch.no_grad():
        scores = module.eval()(some_batch())
        for name, weight in module.named_parameters():
            if "lora_B" in name:
                weight.zero_()
        assert not torch.allclose(scores, module(some_batch()))


def test_lora_adapts_only_the_layers_that_are_named(pretrained: Callable[..., Path]) -> None:
    keys = {"structured.pretrained": pretrained("llama"), "structured.finetune": "lora"}
    named = {**keys, "lora.target_modules": ["q_proj", "v_proj"]}
    module = beginning(settings_for("llama", **named), VOCABULARY, 2)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in module.named_parameters() if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}
    with pytest.raises(InputError, match="names no linear layer of llama"):
        beginning(settings_for("llama", **{**keys, "lora.target_modules": ["c_attn"]}), VOCABULARY, 2)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradients(body: Body) -> dict[str, torch.Tensor]:
        batch = some_batch()
        body.train()(batch.ids, batch.lengths).float().pow(2).sum().backward()
        return {name: weight.grad for name, weight in body.named_parameters() if weight.grad is not None}

    for architecture in LAYERS:
        code = StructuredSettings(architecture=architecture, size="demo", context=32, dropout=0.0)
        plain, recomputed = build_model(code, VOCABULARY, 0), build_model(code, VOCABULARY, 0)
        recomputed.checkpoint_activations()
        expected, found = gradients(plain), gradients(recomputed)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_another_model_than_the_settings_describe_is_refused(pretrained: Callable[..., Path], tmp_path: Path) -> None:
    run = pretrained("gpt2")
    wrong = [
        ({"structured.pretrained": run, "structured.context": 64}, "knows 32 places"),
        ({"structured.pretrained": tmp_path}, "holds no model"),
        ({"structured.pretrained": run, "structured.tokenizer": {"kind": "ethos"}}, "brings its tokenizer"),
    ]
    for keys, what in wrong:
        with pytest.raises(InputError, match=what):
            StructuredArm(settings_for("gpt2", **keys), None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="llama, and the pretrained model is gpt2"):
        StructuredArm(settings_for("llama", **{"structured.pretrained": run}), None)  # type: ignore[arg-type]


# on a cohort


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "synthetic"
    synthesize(folder, 80, seed=3)
    return folder


@pytest.fixture(scope="module")
def cohort(cohort_folder: Path) -> Cohort:
    return build_cohort(cohort_folder, labels_dir=cohort_folder / "labels" / "cancer")


@pytest.fixture(scope="module")
def lookups(cohort: Cohort) -> Lookups:
    tables = {name: shipped_lookup(name) for name in ("medical", "lab", "region", "time")}
    return load_lookups(**tables, codes=cohort.dataset.codes(), icd10cm=False)


def fit(settings: Settings, cohort: Cohort, lookups: Lookups, directory: Path) -> FittedStructured:
    rows = cohort.rows.filter(pl.col("split").is_in(["train", "tuning"]))
    return StructuredArm(settings, lookups).fit(rows, cohort.history(rows), Run(directory))


def test_from_pretraining_to_predictions_that_a_fresh_process_repeats(
    cohort: Cohort, cohort_folder: Path, lookups: Lookups, tmp_path: Path
) -> None:
    steps = {"training.max_steps": 4, "training.output_dir": tmp_path / "run"}
    before = settings_for("gpt2", stage="pretrain", **{**steps, "training.batch_size": 4})
    rows = cohort.rows.filter(pl.col("split").is_in(["train", "tuning"]))
    figures = pretrain(before, lookups, rows, cohort.history(rows), Run(tmp_path / "pre"))
    assert figures["loss"] < figures["loss_before"]
    keys = {"structured.pretrained": tmp_path / "pre", "structured.finetune": "lora"}
    settings = settings_for("gpt2", **steps, **keys)
    fitted = fit(settings, cohort, lookups, tmp_path / "run")
    fitted.save(tmp_path / "run")
    held_out = cohort.select("held_out")
    expected = fitted.predict(held_out, cohort.history(held_out))
    assert expected.shape == (held_out.height, 2)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    script = (
        "import json, sys, numpy as np\nfrom pathlib import Path\n"
        "from epicrisis.cohort import build_cohort\nfrom epicrisis.settings import settings_from\n"
        "from epicrisis.structured.arm import StructuredArm\n"
        "tree, data, run, target = sys.argv[1:]\ndata = Path(data)\n"
        "cohort = build_cohort(data, labels_dir=data / 'labels' / 'cancer')\nrows = cohort.select('held_out')\n"
        "arm = StructuredArm(settings_from(json.loads(tree), check_files=False), None)\n"
        "np.save(target, arm.load(Path(run)).predict(rows[::-1], cohort.history(rows)))\n"
    )
    tree = json.dumps(settings.resolved())
    target = tmp_path / "again.npy"
    subprocess.run(
        [sys.executable, "-c", script, tree, str(cohort_folder), str(tmp_path / "run"), str(target)], check=True
    )
    np.testing.assert_allclose(np.load(target)[::-1], expected, atol=1e-7)
    with pytest.raises(InputError, match=r"structured \(pooling\)"):
        StructuredArm(settings_for("gpt2", **keys, **{"structured.pooling": "mean"}), lookups).load(tmp_path / "run")


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_several_classes_and_labels_with_weights_and_correction(
    kind: str, cohort: Cohort, lookups: Lookups, tmp_path: Path
) -> None:
    number = pl.int_range(pl.len()) % 3
    words = {
        "multiclass": pl.concat_str(pl.lit("c"), number),
        "multilabel": pl.concat_list(pl.concat_str(pl.lit("c"), number), pl.lit("all")),
    }
    rows = cohort.rows.with_columns(label=words[kind])
    keys = {"training.max_steps": 2, "training.class_weights": "balanced", "model.prior_correction": True}
    learnt = rows.filter(pl.col("split").is_in(["train", "tuning"]))
    arm = StructuredArm(settings_for("lstm", **keys), lookups)
    fitted = arm.fit(learnt, cohort.history(learnt), Run(tmp_path))
    held_out = rows.filter(pl.col("split") == "held_out")
    found = fitted.predict(held_out, cohort.history(held_out))
    names = {"multiclass": ("c0", "c1", "c2"), "multilabel": ("all", "c0", "c1", "c2")}[kind]
    assert fitted.classes == names
    assert found.shape == (held_out.height, len(names))
    assert (np.abs(found.sum(axis=1) - 1) < 1e-9).all() == (kind == "multiclass")
    fitted.save(tmp_path)
    again = StructuredArm(settings_for("lstm", **keys), lookups).load(tmp_path)
    np.testing.assert_allclose(again.predict(held_out, cohort.history(held_out)), found, atol=1e-7)


def test_what_comes_after_the_prediction_time_changes_no_prediction(
    cohort: Cohort, cohort_folder: Path, lookups: Lookups, tmp_path: Path
) -> None:
    fitted = fit(settings_for("hyena", **{"training.max_steps": 1}), cohort, lookups, tmp_path / "run")
    rows = cohort.rows
    expected = fitted.predict(rows, cohort.history(rows))
    later = tmp_path / "later"
    subprocess.run(["cp", "-r", str(cohort_folder), str(later)], check=True)
    changed = 0
    for path in (later / "data").rglob("*.parquet"):
        events = pl.read_parquet(path)
        last = rows.group_by("subject_id").agg(pl.col("prediction_time").max().alias("_last"))
        seen = pl.col("time").is_null() | (pl.col("time") <= pl.col("_last")) | pl.col("_last").is_null()
        told = events.join(last, on="subject_id", how="left", maintain_order="left")
        changed += told.filter(~seen).height
        code = pl.when(seen).then(pl.col("code")).otherwise(pl.lit("ICD10CM//I10"))
        told.with_columns(code.alias("code")).drop("_last").write_parquet(path)
    assert changed
    other = build_cohort(later, labels_dir=later / "labels" / "cancer")
    assert np.array_equal(fitted.predict(other.rows, other.history(other.rows)), expected)

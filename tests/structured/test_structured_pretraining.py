"""Pretraining: what is learnt from, that it is learnt, and that a resumed run is the run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.settings import Settings, settings_from
from epicrisis.settings.structured_section import OBJECTIVES, StructuredSettings
from epicrisis.structured.batches import BOS, CLS, EOS, SEP, STRETCH, at_least, budget_batches
from epicrisis.structured.corruption import MASK, masked_batch, n_masked, n_span_targets, span_batch
from epicrisis.structured.lesson import RecordLesson, n_sentinels, token_loss
from epicrisis.structured.pretrain import batches_as_items, make_pretraining
from epicrisis.structured.sequences import Sequences
from epicrisis.structured.snapshots import CountedLesson, Snapshots, tokens_of_steps
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.loop import make_plan, train

VOCABULARY = 30
STEPS = {"bert": 200, "t5": 80, "lstm": 40}
"""What it takes until the toy grammar is half learnt; the others need a dozen."""


def sequences_of(rows: list[list[int]]) -> Sequences:
    """Rows of tokens; times and visits do not matter here."""
    bounds = np.cumsum([0] + [len(row) for row in rows])
    flat = np.array([token for row in rows for token in row], dtype=np.int32)
    keys = pl.DataFrame({"subject_id": range(len(rows)), "prediction_time": [0] * len(rows)})
    running = np.arange(len(flat), dtype=np.int32)
    return Sequences(keys, flat, flat.astype(np.float32), running, running, bounds)


def grammar(n: int, seed: int = 0) -> list[list[int]]:
    """Records in which each token is followed by its successor, nine times of ten."""
    random, rows = np.random.default_rng(seed), []
    for length in random.integers(4, 60, n):
        row = [int(random.integers(7, VOCABULARY))]
        while len(row) < length:
            follower = 7 + (row[-1] - 6) % (VOCABULARY - 7)
            row.append(follower if random.random() < 0.9 else int(random.integers(7, VOCABULARY)))
        rows.append(row)
    return rows


def settings_for(architecture: str, directory: Path, **changes: Any) -> Settings:
    tree: dict[str, Any] = {
        "arm": "structured",
        "stage": "pretrain",
        "structured": {"architecture": architecture, "size": "demo", "context": 32, "tokens_per_batch": 256},
        "training": {"output_dir": directory, "learning_rate": 5e-3, "epochs": 2, "logging_steps": 100, "bf16": False},
    }
    for key, value in changes.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return settings_from(tree)


def lesson_for(settings: Settings, rows: list[list[int]]) -> RecordLesson:
    return RecordLesson(sequences_of(rows), settings.structured, VOCABULARY)


def learnt(lesson: RecordLesson) -> list[list[int]]:
    """Each window's supervised tokens, in no order."""
    found = []
    for item in range(lesson.n_items):
        batch = lesson.collate([item])
        assert batch.labels is not None
        found += [row[row != -100].tolist() for row in batch.labels]
    return found


# what is learnt from


def test_next_tokens_are_each_learnt_once_in_every_epoch_and_eos_once_a_record(tmp_path: Path) -> None:
    rows = grammar(20)
    lesson = lesson_for(settings_for("gpt2", tmp_path), rows)
    expected = sorted(token for row in rows for token in [*row, EOS])
    for epoch in range(3):
        assert sorted(token for window in learnt(lesson) for token in window) == expected
        lesson.start_epoch(epoch, 0)
    assert lesson.units(range(lesson.n_items)) == len(expected)


def test_a_record_between_bos_and_eos_and_the_windows_of_a_longer_one(tmp_path: Path) -> None:
    short, longer = [7, 8, 9], list(range(7, 27)) * 2
    lesson = lesson_for(settings_for("gpt2", tmp_path), [short, longer])
    rows = [
        ids[:size].tolist()
        for batch in map(lesson.collate, ([i] for i in range(lesson.n_items)))
        for ids, size in zip(batch.ids, batch.lengths.tolist(), strict=True)
    ]
    whole = [BOS, *longer, EOS]
    assert sorted(rows) == sorted([[BOS, *short, EOS], whole[:32], whole[31:]])


def test_two_epochs_cut_and_mix_otherwise_and_the_same_epoch_alike(tmp_path: Path) -> None:
    def read(lesson: RecordLesson, epoch: int) -> list[list[int]]:
        lesson.start_epoch(epoch, 3)
        return [lesson.collate([item]).ids.tolist() for item in range(lesson.n_items)]

    first, again = (lesson_for(settings_for("gpt2", tmp_path), grammar(30)) for _ in range(2))
    assert read(first, 0) != read(first, 1)
    assert read(first, 1) == read(again, 1)


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "t5"])
def test_a_batch_holds_no_more_places_than_asked_for_and_units_are_its_labels(
    architecture: str, tmp_path: Path
) -> None:
    lesson = lesson_for(settings_for(architecture, tmp_path), grammar(60))
    for epoch in range(2):
        lesson.start_epoch(epoch, 0)
        assert lesson.n_items >= lesson.fewest_items
        for item in range(lesson.n_items):
            batch = lesson.collate([item])
            assert batch.places <= 256
            assert batch.ids.shape[1] <= 32
            assert lesson.units([item]) == int((batch.labels != -100).sum())
            assert lesson.tokens([item]) == batch.useful_tokens
    assert lesson.layout()["useful_token_share"] > 0.8


def test_masking_is_dynamic_repeatable_and_does_not_follow_the_processes(tmp_path: Path) -> None:
    settings = settings_for("bert", tmp_path)
    lesson, again = (lesson_for(settings, grammar(20)) for _ in range(2))
    lesson.start_epoch(0, 0)
    again.start_epoch(0, 0)
    torch.manual_seed(99)  # the process's own numbers have no say
    assert torch.equal(lesson.collate([0]).ids, again.collate([0]).ids)
    first = learnt(lesson)
    lesson.start_epoch(1, 0)
    assert sorted(first) != sorted(learnt(lesson))


def test_masked_tokens_are_15_percent_of_which_80_are_masked_and_10_replaced() -> None:
    tokens = np.random.default_rng(0).integers(7, 1000, 40_000)
    batch = masked_batch([tokens], np.array([0]), 0.15, 1000, np.random.default_rng(1))
    ids, labels = batch.ids[0, 1:-1].numpy(), batch.labels[0, 1:-1].numpy()
    assert (batch.ids[0, 0], batch.ids[0, -1]) == (CLS, SEP)
    chosen = labels != -100
    assert chosen.sum() == 6000
    assert np.array_equal(labels[chosen], tokens[chosen])
    assert np.array_equal(ids[~chosen], tokens[~chosen])
    assert (ids[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.02)
    changed = (ids[chosen] != MASK) & (ids[chosen] != tokens[chosen])
    assert changed.mean() == pytest.approx(0.1, abs=0.02)
    assert ids.min() >= 4


def test_what_is_only_carried_over_is_not_masked() -> None:
    tokens = np.arange(7, 17)
    for seed in range(20):
        batch = masked_batch([tokens], np.array([4]), 0.5, 30, np.random.default_rng(seed))
        assert batch.ids[0, 1:5].tolist() == [7, 8, 9, 10]
        assert int((batch.labels != -100).sum()) == int(n_masked(6, 0.5)) == 3


@given(length=st.integers(2, 60), share=st.floats(0.05, 0.55), seed=st.integers(0, 1000))
def test_spans_and_what_is_shown_are_the_sequence(length: int, share: float, seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(7, 30, length)
    batch = span_batch([tokens], share, 30, np.random.default_rng(seed))
    shown, wanted = batch.ids[0].tolist(), batch.labels[0].tolist()
    assert (shown[-1], wanted[-1]) == (EOS, EOS)
    assert batch.decoder_ids[0].tolist() == [0, *wanted[:-1]]
    assert len(wanted) == int(n_span_targets(length, share))
    hidden: dict[int, list[int]] = {}
    for token in wanted[:-1]:
        if token >= 30:
            hidden[token] = []
        else:
            hidden[max(hidden)].append(token)
    assert list(hidden) == list(range(30, 30 + len(hidden)))
    filled = [t for token in shown[:-1] for t in (hidden[token] if token >= 30 else [token])]
    assert filled == tokens.tolist()


def test_there_are_sentinels_for_every_span_of_the_longest_window() -> None:
    settings = StructuredSettings(architecture="t5", context=512)
    assert n_sentinels(settings) == 26  # 77 of 511 tokens in spans of 3
    assert n_sentinels(StructuredSettings(architecture="gpt2")) == 0


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200),
    budget=st.integers(40, 400),
    seed=st.none() | st.integers(0, 5),
)
def test_batches_hold_everything_once_within_the_budget(lengths: list[int], budget: int, seed: int | None) -> None:
    sizes = np.array(lengths)
    batches = budget_batches(sizes, budget, None if seed is None else (seed, 0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) * sizes[batch].max() <= budget for batch in batches)
    more = at_least(batches, min(len(lengths), len(batches) + 3))
    assert len(more) == min(len(lengths), len(batches) + 3)
    assert sorted(np.concatenate(more).tolist()) == list(range(len(lengths)))


def test_stretches_mix_batches_and_keep_padding_low() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 20_000).astype(int).clip(2, 1024)
    batches = budget_batches(lengths, 8192, (0, 0))
    places = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert lengths.sum() / places > 0.93
    assert len(batches) > 3 * STRETCH


# that it is learnt


@pytest.mark.parametrize("architecture", list(OBJECTIVES))
def test_pretraining_brings_the_loss_below_the_entropy_of_the_tokens(architecture: str, tmp_path: Path) -> None:
    changes = {"structured.context": 64, "structured.tokens_per_batch": 1024, "structured.dropout": 0.0}
    steps = {"training.max_steps": STEPS.get(architecture, 12), "training.epochs": 1000}
    if architecture == "bert":
        changes |= {"structured.mask_probability": 0.3}
        steps |= {"training.learning_rate": 2e-3, "training.lr_scheduler_type": "constant"}
    settings = settings_for(architecture, tmp_path, **changes, **steps, **{"training.eval_steps": 1000})
    rows = grammar(120)
    lesson, tuning = lesson_for(settings, rows), lesson_for(settings, grammar(20, seed=1))
    module, accelerator = make_pretraining(settings, VOCABULARY), Accelerator(cpu=True)
    counts = np.bincount(np.concatenate(rows))
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log(share)).sum())
    before = token_loss(module.eval(), tuning, accelerator)["loss"]
    run(module, lesson, tuning, settings, tmp_path, accelerator)
    after = token_loss(module.eval(), tuning, accelerator)["loss"]
    assert before > 0.9 * entropy
    assert after < 0.75 * entropy


def run(
    module: torch.nn.Module,
    lesson: Any,
    tuning: RecordLesson,
    settings: Settings,
    directory: Path,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    checkpoints = Checkpoints(directory / "checkpoints", 2, accelerator)
    logged: list[dict[str, Any]] = []
    train(
        *(module, lesson, batches_as_items(settings.training, accelerator), accelerator, checkpoints),
        title="pretrain",
        evaluate=lambda module: token_loss(module, tuning, accelerator),
        log=lambda **fields: logged.append(fields),
    )
    return logged


@pytest.mark.parametrize("architecture", ["bert"])
def test_a_resumed_run_is_bit_for_bit_the_run_that_never_stopped(architecture: str, tmp_path: Path) -> None:
    accelerator, rows = Accelerator(cpu=True), grammar(40)

    def weights(directory: Path, *stops: int) -> dict[str, torch.Tensor]:
        for number, steps in enumerate(stops):
            changes = {"training.epochs": 3, "training.save_steps": 1, "training.keep_best": False}
            settings = settings_for(architecture, directory, **changes, **{"training.resume": number > 0})
            lesson, module = lesson_for(settings, rows), make_pretraining(settings, VOCABULARY)
            stopping = Stopping(lesson, steps) if steps else lesson
            try:
                run(module, stopping, lesson_for(settings, rows[:5]), settings, directory, accelerator)
            except KeyboardInterrupt:
                continue
        return {name: weight.detach() for name, weight in module.named_parameters()}

    whole, resumed = weights(tmp_path / "whole", 0), weights(tmp_path / "resumed", 3, 0)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


class Stopping:
    """A lesson in which somebody pulls the plug after some steps."""

    def __init__(self, lesson: RecordLesson, steps: int):
        self._lesson = lesson
        self._left = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lesson, name)

    @property
    def fewest_items(self) -> int:
        return self._lesson.fewest_items

    def start_epoch(self, epoch: int, seed: int) -> None:
        self._lesson.start_epoch(epoch, seed)

    def units(self, items: list[int]) -> int:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._lesson.units(items)


def test_snapshots_come_after_the_step_that_reaches_their_tokens(tmp_path: Path) -> None:
    settings = settings_for("lstm", tmp_path, **{"training.epochs": 2})
    accelerator, lesson = Accelerator(cpu=True), lesson_for(settings, grammar(40))
    module = make_pretraining(settings, VOCABULARY)
    training = batches_as_items(settings.training, accelerator)
    plan = make_plan(lesson.fewest_items, training)
    passed = [tokens_of_steps(lesson, plan, 0, step) for step in range(plan.n_steps + 1)]
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tokens: int) -> None:
        kept[tokens] = (snapshots.seen, module.body.embedding.weight.detach().clone())

    snapshots = Snapshots([passed[3], passed[1] + 1], keep)
    run(module, CountedLesson(lesson, snapshots), lesson_for(settings, grammar(4)), settings, tmp_path, accelerator)
    assert {tokens: seen for tokens, (seen, _) in kept.items()} == {passed[1] + 1: passed[2], passed[3]: passed[3]}
    first, second = (kept[tokens][1] for tokens in sorted(kept))
    assert not torch.equal(first, second)
    assert snapshots.seen == passed[-1]

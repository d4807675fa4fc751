"""Whole records in pretraining: every token learnt once an epoch, in windows that are cut anew, and resumed exactly."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from epicrisis.commands import main
from epicrisis.corpus.packing import IGNORED, best_fit
from epicrisis.corpus.prepare import Prepared
from epicrisis.corpus.windows import cut
from epicrisis.events.synthetic import synthesize
from epicrisis.llm.adapters import CLINICAL
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base
from epicrisis.llm.heads import NextToken
from epicrisis.llm.pretrain import NarrativeLesson, token_loss
from epicrisis.settings import InputError, settings_from
from epicrisis.settings.schema import TrainingSettings
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.loop import FreshEachEpoch, items_of_step, make_plan, train
from epicrisis.training.plan import Order

EOS, PAD, WINDOW = 1, 0, 12


class Ids:
    """What a lesson needs of a tokenizer."""

    eos_token_id, pad_token_id = EOS, PAD


def numbered(lengths, n_header_tokens=0):
    """Narratives of these lengths in which no token occurs twice: 100, 101, 102 …"""
    first, ids = 100, []
    for length in lengths:
        ids.append(list(range(first, first + length)))
        first += length
    heads = [min(n_header_tokens, length) for length in lengths]
    return datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": lengths, "n_header_tokens": heads})


def learnt(lesson):
    """All labels of a lesson, in order of size."""
    labels = lesson.collate(range(lesson.n_items)).labels
    return sorted(labels[labels != IGNORED].tolist())


def test_the_rows_of_whole_records_written_out():
    lesson = NarrativeLesson(numbered([9, 3], 2), Ids, 6, repeat_header=True)
    lesson_rows = lesson.collate(range(lesson.n_items))
    # 9 tokens and EOS: 100-105, then 100 101 | 105 | 106 107 108, then 100 101 | 108 | EOS; 3 tokens and EOS
    assert lesson_rows.input_ids.tolist() == [
        [100, 101, 102, 103, 104, 105],
        [100, 101, 105, 106, 107, 108],
        [100, 101, 108, EOS, PAD, PAD],
        [109, 110, 111, EOS, PAD, PAD],
    ]
    assert lesson_rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2 + [[0, 1, 2, 3, 0, 1]] * 2
    no = IGNORED
    assert lesson_rows.labels.tolist() == [
        [no, 101, 102, 103, 104, 105],
        [no, no, no, 106, 107, 108],
        [no, no, no, EOS, no, no],
        [no, 110, 111, EOS, no, no],
    ]
    assert lesson.packing() == {
        "documents": 2,
        "windows": 4,
        "rows": 4,
        "supervised_tokens": 12,
        "rows_full": 14 / 24,
    }


@examples(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=8), st.integers(0, 20), st.booleans(), st.integers(0, 3))
def test_every_epoch_learns_every_token_once_but_for_each_records_first(lengths, header, repeat_header, seed):
    tokens = numbered(lengths, header)
    expected = [EOS] * len(lengths) + [i for ids in tokens["input_ids"] for i in ids[1:]]
    lesson = NarrativeLesson(tokens, Ids, 12, repeat_header=repeat_header)
    assert learnt(lesson) == expected
    for epoch in range(3):
        lesson.start_epoch(epoch, seed)
        assert learnt(lesson) == expected
        assert lesson.n_items >= lesson.fewest_items
        units = [lesson.units([item]) for item in range(lesson.n_items)]
        assert units == [lesson.collate([item]).supervised_tokens for item in range(lesson.n_items)]


def test_epochs_are_cut_differently_and_an_epoch_started_again_is_the_same():
    lesson = NarrativeLesson(numbered([90, 70, 5]), Ids, 16)
    rows = {}
    for epoch in (0, 1, 0):
        lesson.start_epoch(epoch, 3)
        ids = lesson.collate(range(lesson.n_items)).input_ids
        assert epoch not in rows or torch.equal(ids, rows[epoch])
        rows[epoch] = ids
    assert rows[0].shape != rows[1].shape or not torch.equal(rows[0], rows[1])
    lesson.start_epoch(0, 4)
    assert lesson.n_items != len(rows[0]) or not torch.equal(lesson.collate(range(lesson.n_items)).input_ids, rows[0])


def test_no_epoch_has_fewer_rows_than_the_plan_counts_on():
    lesson = NarrativeLesson(numbered([14, 14, 14]), Ids, 10)
    assert lesson.fewest_items == 6, "three full windows, and three of 6 tokens of which no two fit a row"
    tightest = []
    for epoch in range(60):
        lesson.start_epoch(epoch, 0)
        assert lesson.n_items >= 6
        moved = cut(np.full(3, 15), np.zeros(3, int), 10, (0, epoch))
        tightest.append(len(best_fit(moved.lengths, 10)))
    assert min(tightest) == 5, "an epoch whose windows would fit five rows must be among these"


def test_records_that_fit_are_laid_out_once_for_all_epochs():
    lesson = NarrativeLesson(numbered([9, 5, 4, 7]), Ids, 12)
    before = lesson.collate(range(lesson.n_items))
    lesson.start_epoch(1, 0)
    after = lesson.collate(range(lesson.n_items))
    assert before.input_ids.tolist() == after.input_ids.tolist()
    assert before.input_ids.tolist() == [
        [*range(100, 109), EOS, PAD],
        [*range(118, 125), EOS, PAD, PAD, PAD],
        [*range(109, 114), EOS, *range(114, 118), EOS],
    ]


def test_a_repeated_header_changes_what_is_read_and_not_what_is_learnt():
    tokens = numbered([60, 50], 4)
    bare, headed = (NarrativeLesson(tokens, Ids, 20, repeat_header=repeat) for repeat in (False, True))
    shown = [lesson.collate(range(lesson.n_items)).input_ids.flatten().tolist() for lesson in (bare, headed)]
    assert shown[0].count(103) == 1
    assert shown[1].count(103) == 4, "61 tokens with EOS: one window of 20, then 15 in each beside their context"
    assert learnt(bare) == learnt(headed)


def test_headers_of_unknown_length_are_refused():
    tokens = numbered([60]).remove_columns("n_header_tokens")
    NarrativeLesson(tokens, Ids, 20)
    with pytest.raises(InputError, match="how long each header is"):
        NarrativeLesson(tokens, Ids, 20, repeat_header=True)


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_windows_are_read_from_a_memory_mapped_table_of_several_batches(tmp_path: Path, kind):
    documents = [list(range(start, start + n)) for start, n in ((100, 50), (200, 3), (300, 40), (400, 7))]
    schema = pa.schema([("input_ids", kind(pa.uint32())), ("n_tokens", pa.int32())])
    with pa.ipc.new_stream(tmp_path / "tokens.arrow", schema) as writer:
        for part in (documents[:3], documents[3:]):
            writer.write_table(pa.table({"input_ids": part, "n_tokens": [len(d) for d in part]}).cast(schema))
    lesson = NarrativeLesson(datasets.Dataset.from_file(str(tmp_path / "tokens.arrow")), Ids, 16)
    assert learnt(lesson) == [EOS] * 4 + [i for document in documents for i in document[1:]]


@examples(deadline=None)
@given(st.integers(1, 40), st.integers(0, 25), st.integers(1, 6))
def test_an_epoch_with_more_items_than_planned_takes_each_once_in_as_many_steps(planned, more, step_items):
    plan = make_plan(planned, TrainingSettings(batch_size=step_items, epochs=2))
    n_items, steps = planned + more, range(plan.steps_per_epoch, 2 * plan.steps_per_epoch)
    taken = [items_of_step(plan, step, 0, n_items) for step in steps]
    assert sorted(item for items in taken for item in items) == list(range(n_items))
    assert all(taken)
    most = -(-step_items * n_items // planned)
    assert max(map(len, taken)) <= most


def test_nearly_all_places_of_a_runs_batches_are_tokens_of_narratives():
    """Though most narratives are longer than half a row, so that rows themselves stay partly free."""
    lengths = np.random.default_rng(0).normal(300, 60, 2000).clip(20, 511).astype(int)
    lesson = NarrativeLesson(numbered(lengths.tolist()), Ids, 512)
    assert lesson.packing()["rows_full"] < 0.8
    plan = make_plan(lesson.n_items, TrainingSettings(batch_size=4))
    order = Order(plan, 0, lambda: lesson.item_lengths)
    batches = [lesson.collate(order.items(step)) for step in range(plan.n_steps)]
    assert sum(batch.useful_tokens for batch in batches) / sum(batch.places for batch in batches) > 0.99


@pytest.fixture
def learn(settings, accelerator, tokens, tokenizer):
    """Pretrain a fresh adapter on narratives in windows of WINDOW tokens: its weights, what was logged, the position.

    `seen` collects the token ids of every batch.
    """

    def run(folder, stop_at=None, seen=None, dropout=0.3, repeat_header=False, **training):
        s = settings("llama", **{f"training.{k}": v for k, v in training.items()}, **{"lora.lora_dropout": dropout})
        model = backend_for("peft").attach(load_base(s, accelerator), CLINICAL, s.lora, 0)
        heads = [10 + i for i in range(len(tokens))]
        with_heads = tokens.add_column("n_header_tokens", heads)
        lesson, tuning = (NarrativeLesson(with_heads, tokenizer, WINDOW, repeat_header=repeat_header) for _ in range(2))
        module = NextToken(model)
        torch.manual_seed(5)
        logged = []

        def log(**fields):
            logged.append(fields)
            if stop_at is not None and fields["step"] == stop_at and "train/loss" in fields:
                raise KeyboardInterrupt

        if seen is not None:
            collate = lesson.collate
            lesson.collate = lambda items: seen.append(batch := collate(items)) or batch
        position = train(
            module,
            lesson,
            s.training,
            accelerator,
            Checkpoints(folder, 2, accelerator),
            title="test",
            evaluate=lambda m: token_loss(m, tuning, 2, accelerator),
            log=log,
        )
        return trained_weights(module), logged, position

    return run


def test_the_narratives_of_these_tests_are_longer_than_a_window(tokens, tokenizer):
    lesson = NarrativeLesson(tokens, tokenizer, WINDOW)
    assert isinstance(lesson, FreshEachEpoch)
    assert lesson.packing()["windows"] >= 2 * len(tokens)


@pytest.mark.parametrize("repeat_header", [False, True])
def test_a_resumed_run_on_windows_is_the_uninterrupted_run_bit_for_bit(learn, tmp_path, repeat_header):
    shared = {"batch_size": 2, "gradient_accumulation_steps": 2, "epochs": 4, "save_steps": 2, "logging_steps": 1}
    shared |= {"repeat_header": repeat_header}
    seen, seen_after = [], []
    whole, logged, position = learn(tmp_path / "whole", seen=seen, **shared)
    stop = position.step - 2
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", stop_at=stop, **shared)
    torch.manual_seed(99)
    resumed, logged_after, resumed_position = learn(tmp_path / "cut", resume=True, seen=seen_after, **shared)
    assert logged_after[0]["step"] == (stop - 1) // 2 * 2 + 1, "it began again instead of going on"
    assert resumed_position == position
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    for batch, again in zip(seen[-len(seen_after) :], seen_after, strict=True):
        assert torch.equal(batch.input_ids, again.input_ids)
    losses = {f["step"]: f["train/loss"] for f in logged if "train/loss" in f}
    assert all(losses[f["step"]] == f["train/loss"] for f in logged_after if "train/loss" in f)


def test_training_takes_each_epochs_tokens_once_and_other_windows_in_each(learn, tokens, tokenizer, tmp_path):
    seen = []
    *_, position = learn(tmp_path, seen=seen, batch_size=1, epochs=2, logging_steps=1)
    lesson = NarrativeLesson(tokens, tokenizer, WINDOW)
    assert position.step == 2 * lesson.fewest_items
    rows, epochs = iter(batch for batch in seen), []
    for epoch in (0, 1):
        lesson.start_epoch(epoch, 0)
        epochs.append([next(rows) for _ in range(lesson.n_items)])
    assert next(rows, None) is None
    for epoch in epochs:
        labels = torch.cat([batch.labels.flatten() for batch in epoch])
        expected = torch.tensor([i for ids in tokens["input_ids"] for i in [*ids[1:], tokenizer.eos_token_id]])
        assert torch.equal(labels[labels != IGNORED].sort().values, expected.sort().values)
    first, second = (sorted(batch.input_ids[0].tolist() for batch in epoch) for epoch in epochs)
    assert first != second


@pytest.mark.parametrize(
    ("where", "tree"),
    [
        ("narrative.records", {"stage": "classify", "narrative": {"records": "whole"}}),
        ("narrative.max_tokens", {"stage": "pretrain", "narrative": {"records": "whole", "max_tokens": 100}}),
        ("narrative.repeat_header", {"stage": "pretrain", "narrative": {"repeat_header": True}}),
    ],
)
def test_what_whole_records_exclude_is_refused(where, tree):
    with pytest.raises(InputError) as error:
        settings_from(tree, check_files=False)
    assert [problem.where for problem in error.value.problems] == [where]
    settings_from({"stage": "pretrain", "narrative": {"records": "whole", "repeat_header": True}}, check_files=False)


@pytest.fixture(scope="module")
def pretrained(bases, tmp_path_factory):
    """Finished pretrainings on a few synthetic subjects: `latest` on the latest events, `whole` on whole records."""
    folder = tmp_path_factory.mktemp("pretrained")
    synthesize(folder / "data", 20, seed=1)
    keys = [f"data.meds_dir={folder / 'data'}", f"data.labels_dir={folder / 'data' / 'labels' / 'cancer'}"]
    keys += ["stage=pretrain", f"model.model_name={bases['llama']}", "model.max_length=128", "training.epochs=2"]
    keys += ["training.load_in_4bit=false", "training.bf16=false", "lora.r=2"]
    for records in ("latest", "whole"):
        run = [f"training.output_dir={folder / records}", f"narrative.records={records}"]
        assert main(["train", *keys, *run]) == 0
    return folder


def test_whole_records_are_pretrained_on_to_their_last_token(pretrained):
    tokens = {name: Prepared(pretrained / name).tokens("train") for name in ("latest", "whole")}
    summaries = {name: json.loads((pretrained / name / "summary.json").read_text()) for name in tokens}
    totals = {name: sum(table["n_tokens"]) for name, table in tokens.items()}
    assert totals["whole"] > 2 * totals["latest"]
    assert sum(tokens["latest"]["n_events_dropped"]) > 0
    assert sum(tokens["whole"]["n_events_dropped"]) == 0
    for name, summary in summaries.items():
        assert summary["supervised_tokens"] == totals[name], "EOS is learnt, a record's first token is not"
        assert summary["documents"] == len(tokens[name])
        assert summary["loss"] < summary["loss_before"]
    assert summaries["latest"]["windows"] == len(tokens["latest"])
    assert summaries["whole"]["windows"] > 2 * len(tokens["whole"])
    assert summaries["whole"]["rows"] >= totals["whole"] / 128
    for summary in summaries.values():
        assert summary["rows_full"] < summary["useful_token_share"] <= 1, "free places are hardly computed"
    assert summaries["whole"]["rows_full"] > 0.8

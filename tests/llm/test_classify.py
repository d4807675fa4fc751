"""Every kind of task is learnt with the loss that it says, weighted and corrected as it says, and wastes nothing."""

import datasets
import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoModelForCausalLM

from epicrisis.llm.adapters import causal_model
from epicrisis.llm.answering import Answering, check_head, head_for, layout_for, lesson_for, prompt_for
from epicrisis.llm.backends import backend_for
from epicrisis.llm.classify import Layout, QuestionLesson, tuning_metrics
from epicrisis.llm.heads import LabelTokens, ScoreHead
from epicrisis.settings import InputError
from epicrisis.training.class_losses import loss_of, probabilities_of
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.outcome import row_predictions
from tests.llm.conftest import QUESTION

WORDS = ["a", "b", "c", "a", "b", "c"]
SETS = [["x"], ["x", "y"], [], ["z"], ["y", "z"], ["x"]]


def rows_with(labels, dtype):
    keys = {
        "subject_id": range(6),
        "prediction_time": pl.Series([0] * 6).cast(pl.Datetime("us")),
        "split": ["train"] * 6,
    }
    return pl.DataFrame({**keys, "label": pl.Series(labels, dtype=dtype)})


TASKS = {
    "binary": rows_with([True, False] * 3, pl.Boolean),
    "multiclass": rows_with(WORDS, pl.String),
    "multilabel": rows_with(SETS, pl.List(pl.String)),
}


@pytest.fixture
def keyed(tokens):
    rows = TASKS["binary"].select("subject_id", "prediction_time").to_arrow()
    return datasets.concatenate_datasets([tokens, datasets.Dataset(rows)], axis=1)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("binary", "label_tokens"), ("multiclass", "label_tokens"), ("multiclass", "score"), ("multilabel", "score")],
)
def test_every_kind_of_task_can_be_overfitted(settings, bases, tokenizer, keyed, accelerator, kind, head):
    answers = ("no", "yes") if kind == "binary" else ("Asthma", "Migraine", "Weight loss")
    s = settings("llama", **{"model.head": head, "model.answers": answers, "training.load_in_4bit": False})
    rows = TASKS[kind]
    answering = Answering.of_task(s, rows, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(bases["llama"]).requires_grad_(False)
    module = head_for(s, backend_for("peft").attach(base, "downstream", s.lora, 0), tokenizer, answering)
    layout = layout_for(module)
    assert layout.packed
    lesson = lesson_for(keyed, tokenizer, answering, 128, layout, rows)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=2e-2)
    before = tuning_metrics(module.eval(), lesson, 4, accelerator)
    for _ in range(40):
        loss = lesson.loss_sum(module, lesson.collate(range(6)), range(6)) / 6
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = tuning_metrics(module.eval(), lesson, 4, accelerator)
    assert after["loss"] < 0.2 < before["loss"]
    assert after["auroc"] == 1.0
    found = row_predictions(module, lesson, 4, accelerator)
    assert found.shape == (6, 2 if kind == "binary" else 3)
    if kind != "multilabel":
        assert found.sum(axis=1) == pytest.approx(np.ones(6))


def test_losses_are_torchs_own():
    torch.manual_seed(0)
    logits, classes, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), torch.rand(5, 3) < 0.5
    torch.testing.assert_close(
        loss_of(logits, classes, ClassWeights(np.array([1.0, 2.0, 0.5]))),
        F.cross_entropy(logits, classes, weight=torch.tensor([1.0, 2.0, 0.5]), reduction="none").sum(),
    )
    torch.testing.assert_close(
        loss_of(logits, labels, ClassWeights.even(3, multilabel=True)),
        F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1).sum(),
    )
    weights = ClassWeights(np.array([[1.0, 3.0], [1.0, 1.0], [1.0, 0.5]]))
    torch.testing.assert_close(
        loss_of(logits, labels, weights),
        F.binary_cross_entropy_with_logits(
            logits, labels.float(), reduction="none", pos_weight=torch.tensor([3.0, 1.0, 0.5])
        )
        .mean(1)
        .sum(),
    )


def test_balanced_weights_are_scikit_learns_and_weigh_one_on_average():
    has = np.array([0] * 6 + [1] * 3 + [2])
    weights = ClassWeights.fit("balanced", has).values
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=has))
    assert weights[has].mean() == pytest.approx(1)
    assert ClassWeights.fit((1, 1, 4), has).values[has].mean() == pytest.approx(1)
    labels = np.array([[1, 0]] * 2 + [[0, 1]] * 6, dtype=bool)
    assert ClassWeights.fit("balanced", labels).values == pytest.approx(np.array([[8 / 12, 2], [2, 8 / 12]]))
    assert ClassWeights.fit("none", has).values.tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="2 weights for 3 classes"):
        ClassWeights.fit((1, 2), has)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_correction_brings_the_true_shares_back(multilabel):
    """The best constant logits under weights, corrected, are the classes' own shares."""
    shares = torch.tensor([0.7, 0.2, 0.1])
    has = np.repeat([0, 1, 2], [70, 20, 10])
    targets = torch.from_numpy(np.eye(3, dtype=bool)[has] if multilabel else has)
    weights = ClassWeights.fit("balanced", targets.numpy())
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(logits.expand(100, 3), targets, weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    learnt, corrected = (probabilities_of(logits.detach(), weights, corrected=c)[0].float() for c in (False, True))
    assert learnt.tolist() == pytest.approx([1 / 2] * 3 if multilabel else [1 / 3] * 3, abs=1e-3)
    assert corrected.tolist() == pytest.approx(shares.tolist(), abs=1e-3)


def test_heads_that_cannot_do_a_task_are_refused(settings):
    classes = ("a", "b", "c")
    with pytest.raises(InputError, match="2 answers for the 3 classes a, b, c"):
        check_head(settings(), "multiclass", classes)
    with pytest.raises(InputError, match="a row can have several of the 3 labels"):
        check_head(settings(), "multilabel", classes)
    check_head(settings(**{"model.head": "score"}), "multilabel", classes)
    check_head(settings(**{"model.answers": ("one", "two", "three")}), "multiclass", classes)


def test_a_classifier_is_loaded_as_it_was_saved_and_asked_as_it_was(settings, tokenizer):
    s = settings(**{"model.head": "score", "training.class_weights": "balanced"})
    answering = Answering.of_task(s, TASKS["multilabel"], tokenizer)
    again = Answering.load(answering.saved(), s, tokenizer)
    assert (again.kind, again.classes, again.prompt) == (answering.kind, answering.classes, answering.prompt)
    assert np.array_equal(again.outcome.weights.values, answering.outcome.weights.values)
    with pytest.raises(InputError, match="not what this checkpoint was trained with"):
        Answering.load(answering.saved(), settings(**{"model.head": "score", "model.question": "Or else?"}), tokenizer)


def test_however_documents_lie_their_scores_are_the_same(bases, tokenizer, tokens, accelerator):
    module = LabelTokens(AutoModelForCausalLM.from_pretrained(bases["llama"]).eval(), [5, 6])
    layouts = [Layout(packed=False), Layout(width_cost=0.0), Layout(width_cost=1e-4), Layout(width_cost=1.0)]
    scored = [
        row_predictions(module, QuestionLesson(tokens, tokenizer, QUESTION, 128, layout=layout), 2, accelerator)
        for layout in layouts
    ]
    for found in scored[1:]:
        assert found == pytest.approx(scored[0], abs=1e-5)


def test_batches_hold_every_item_once_within_their_room(tokenizer, tokens):
    lesson = QuestionLesson(tokens, tokenizer, QUESTION, 128)
    batches = list(lesson.batches(np.arange(6), 2))
    assert sorted(item for batch in batches for item in batch) == list(range(6))
    assert all(lesson.collate(batch).input_ids.numel() <= 256 for batch in batches)
    assert len(batches) < 6


def test_a_base_that_mixes_documents_gets_a_row_for_each(bases, tokenizer, tokens):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    forward = model.model.forward
    model.model.forward = lambda position_ids=None, **others: forward(**others)
    layout = layout_for(LabelTokens(model, [5, 6]))
    assert not layout.packed
    batch = QuestionLesson(tokens, tokenizer, QUESTION, 128, layout=layout).collate([0, 1, 2])
    assert batch.ends[:, 0].tolist() == [0, 1, 2]


def test_the_answers_mass_is_their_share_of_the_whole_vocabulary(bases, tokenizer, tokens, accelerator):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    lesson = QuestionLesson(tokens, tokenizer, QUESTION, 128, np.array([0, 1] * 3))
    found = tuning_metrics(LabelTokens(model, [5, 6]), lesson, 2, accelerator, mass=True)["answer_mass"]
    with torch.no_grad():
        prompts = [lesson.collate([i]).input_ids for i in range(6)]
        shares = [model(ids).logits[0, -1].softmax(-1)[[5, 6]].sum().item() for ids in prompts]
    assert found == pytest.approx(np.mean(shares), abs=1e-6)


def test_a_score_head_has_as_many_outputs_as_the_task_classes(settings, bases, tokenizer):
    s = settings(**{"model.head": "score"})
    answering = Answering.of_task(s, TASKS["multiclass"], tokenizer)
    module = head_for(s, AutoModelForCausalLM.from_pretrained(bases["llama"]), tokenizer, answering)
    assert isinstance(module, ScoreHead)
    assert module.score.out_features == 3
    assert causal_model(module.model) is module.model
    assert prompt_for(s, tokenizer) == answering.prompt

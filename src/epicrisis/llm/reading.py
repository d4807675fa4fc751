"""Reading exercises: yes-or-no questions that a record answers by itself, for the embedded bases.

A base that has only continued narratives does not look back over a record when it is asked something; one that
has done these exercises does. They ask what is on record, what came first and how old the patient is, of random
findings of other subjects than any cohort's. No outcome is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import polars as pl
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.packing import IGNORED, PackedBatch
from epicrisis.corpus.tokens import encode_narratives, encode_prompt
from epicrisis.llm.adapters import causal_model
from epicrisis.llm.heads import hidden_states
from epicrisis.narrative import Lookups, Style, phrase_table
from epicrisis.narrative.phrases import phrase_ids

ROW = ["subject_id", "prediction_time"]
ANSWERS = ("no", "yes")
PER_KIND = 3
ANSWER_WEIGHT = 40.0
"""How much more an answer counts than any other token: there is about one answer to forty of them."""


def exercises(events: pl.DataFrame, lookups: Lookups, style: Style, seed: int) -> pl.DataFrame:
    """Up to 4 x PER_KIND questions per record: subject_id · prediction_time · question · answer (Boolean).

    events: visible events with their row's keys. Half of the answers of each kind are yes, nearly.
    """
    findings = _findings(events, lookups, style)
    parts = [_on_record(findings, seed), _not_on_record(findings, seed), _order(findings, seed), _age(events, seed)]
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=seed)


def lessons(
    narratives: pl.DataFrame, asked: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> datasets.Dataset:
    """Each narrative followed by its questions and answers as token ids, as many as fit: input_ids, n_tokens."""
    answers = {answer: tokenizer(f" {ANSWERS[answer]}", add_special_tokens=False)["input_ids"] for answer in (0, 1)}
    questions = asked.group_by(ROW).agg("question", "answer")
    told = narratives.join(questions, on=ROW, how="left", maintain_order="left")
    sequences = encode_narratives(tokenizer, told["narrative"].to_list())
    asked_of = zip(told["question"].to_list(), told["answer"].to_list(), strict=True)
    for ids, (wanted, right) in zip(sequences, asked_of, strict=True):
        for question, answer in zip(wanted or (), right or (), strict=True):
            exercise = encode_prompt(tokenizer, question) + answers[int(answer)]
            if len(ids) + len(exercise) <= max_tokens:
                ids += exercise
    return datasets.Dataset.from_dict({"input_ids": sequences, "n_tokens": [len(ids) for ids in sequences]})


class Reading(nn.Module):
    """Next-token loss in which answers weigh ANSWER_WEIGHT times as much as other tokens."""

    answer_ids: torch.Tensor

    def __init__(self, model: nn.Module, answer_ids: Sequence[int]):
        super().__init__()
        self.model = model
        self.register_buffer("answer_ids", torch.tensor(answer_ids), persistent=False)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        supervised = batch.labels[:, 1:] != IGNORED
        targets = batch.labels[:, 1:][supervised]
        hidden = hidden_states(self.model, batch)[:, :-1][supervised]
        losses = F.cross_entropy(
            causal_model(self.model).get_output_embeddings()(hidden).float(), targets, reduction="none"
        )
        weights = 1.0 + (ANSWER_WEIGHT - 1.0) * torch.isin(targets, self.answer_ids)
        return (losses * weights).sum()


def _findings(events: pl.DataFrame, lookups: Lookups, style: Style) -> pl.DataFrame:
    """Dated findings without a number, once per row: ROW · phrase · first (time)."""
    phrases = phrase_table(events, lookups, style)
    told = events.with_columns(phrase_id=phrase_ids(events, phrases)).join(
        phrases.select("phrase_id", "phrase", "role"), on="phrase_id"
    )
    plain = told.filter(pl.col("time").is_not_null(), pl.col("numeric_value").is_null(), pl.col("role") == "")
    return plain.group_by(*ROW, "phrase", maintain_order=True).agg(first=pl.col("time").min())


def _drawn(findings: pl.DataFrame, seed: int) -> pl.DataFrame:
    """PER_KIND random findings of each row."""
    shuffled = findings.sample(fraction=1.0, shuffle=True, seed=seed)
    return shuffled.group_by(ROW, maintain_order=True).head(PER_KIND)


def _on_record(findings: pl.DataFrame, seed: int) -> pl.DataFrame:
    return _asked(_drawn(findings, seed), pl.format("Is {} on record?", "phrase"), pl.lit(True))


def _not_on_record(findings: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Findings of others, drawn as often as they occur, that the row has not."""
    rows = _drawn(findings, seed).select(ROW)
    others = findings["phrase"].sample(rows.height, with_replacement=True, seed=seed)
    wrong = rows.with_columns(phrase=others).join(findings, on=[*ROW, "phrase"], how="anti")
    return _asked(wrong, pl.format("Is {} on record?", "phrase"), pl.lit(False))


def _order(findings: pl.DataFrame, seed: int) -> pl.DataFrame:
    pairs = _drawn(findings, seed + 1).join(_drawn(findings, seed + 2), on=ROW, suffix="_other")
    pairs = pairs.filter(pl.col("first") != pl.col("first_other"))
    pairs = pairs.sample(fraction=1.0, shuffle=True, seed=seed).group_by(ROW, maintain_order=True).head(PER_KIND)
    question = pl.format("Did {} come before {}?", "phrase", "phrase_other")
    return _asked(pairs, question, pl.col("first") < pl.col("first_other"))


def _age(events: pl.DataFrame, seed: int) -> pl.DataFrame:
    born = events.filter(pl.col("code") == "MEDS_BIRTH")
    age = (pl.col("prediction_time") - pl.col("time")).dt.total_days() // 365.25
    bounds = pl.Series("bound", range(25, 95, 5)).sample(born.height, with_replacement=True, seed=seed)
    aged = born.with_columns(bounds, age=age)
    return _asked(aged, pl.format("Is the patient older than {}?", "bound"), pl.col("age") > pl.col("bound"))


def _asked(table: pl.DataFrame, question: pl.Expr, answer: pl.Expr) -> pl.DataFrame:
    return table.select(*ROW, question=question, answer=answer)

"""A finished run's model as one that writes: answers in words, and narratives that go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.cohort import History
from epicrisis.corpus.prepare import KEYS
from epicrisis.corpus.run_narratives import NARRATOR, check_choice, prepare_once
from epicrisis.corpus.telling import Telling
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.adapters import CLINICAL, DOWNSTREAM, adapters_in, causal_model, load_stacked
from epicrisis.llm.answering import prompt_for, written_answers
from epicrisis.llm.arm import telling_for
from epicrisis.llm.base_model import load_base, load_tokenizer
from epicrisis.llm.fuse import load_fused, new_tokens_file
from epicrisis.llm.futures import Sampled, Target, count_risks, horizon_stop, opening
from epicrisis.llm.sampling import Decoding, Written, log_probabilities, stop_at, texts_of, write
from epicrisis.llm.trie import make_trie
from epicrisis.narrative import Lookups, Narrator
from epicrisis.narrative.header import HEADER_ROLES
from epicrisis.settings import Settings, refuse
from epicrisis.settings.generation_section import GenerationSettings
from epicrisis.training.device import make_accelerator

ANSWER_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "answer": pl.String,
    "said": pl.String,
    "said_only": pl.Boolean,
    "log_probability": pl.Float64,
    "probabilities": pl.List(pl.Float64),
}
CONTINUATION_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "sample": pl.UInt32,
    "continuation": pl.String,
    "ending": pl.String,
    "n_tokens": pl.UInt32,
    "log_probability": pl.Float64,
}

MAX_NEW_TOKENS = 256
"""Tokens of a continuation where the settings name none."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPARE_ANSWER_TOKENS = 4
"""So many tokens more than the longest answer has, to see whether it is one that is said."""


@dataclass(frozen=True)
class Author:
    """What writes: a model with its adapters active, and how histories are told to it."""

    settings: Settings
    telling: Telling
    model: nn.Module | None
    """None where another engine writes."""
    accelerator: Accelerator

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.telling.tokenizer

    @property
    def narrator(self) -> Narrator:
        return self.telling.narrator


def load_author(settings: Settings, lookups: Lookups, directory: Path) -> Author:
    """The model of a finished run, pretrained or classifying; model.fused goes before the run's own adapters.

    Bases are loaded with transformers and adapters with PEFT, whatever the run was trained with. Raises
    InputError where narratives would be told otherwise than in training.
    """
    plainly = {"framework": "peft", "gradient_checkpointing": False}
    settings = settings.model_copy(update={"training": settings.training.model_copy(update=plainly)})
    adapters = directory / "adapters"
    narrator = Narrator.load(_narrator_folder(adapters), lookups)
    check_choice(narrator, settings)
    accelerator = make_accelerator(settings.training)
    tokens = new_tokens_file(adapters / name for name in (CLINICAL, DOWNSTREAM))
    tokenizer = load_tokenizer(settings.model, accelerator, tokens)
    telling = telling_for(settings, narrator, lookups, tokenizer)
    if settings.generation.engine == "vllm":
        return Author(settings, telling, None, accelerator)
    if settings.model.fused is not None:
        model = load_fused(settings, settings.model.fused, accelerator)
    else:
        model = load_base(settings, accelerator, tokens)
        if adapters_in(adapters):
            model = load_stacked(model, adapters)
    return Author(settings, telling, model.eval(), accelerator)


def _narrator_folder(adapters: Path) -> Path:
    """A classifier's lies beside its adapters, that of a pretraining with its only one."""
    own = adapters / NARRATOR
    return own if own.is_dir() else adapters / CLINICAL / NARRATOR


def narratives_of(author: Author, rows: pl.DataFrame, history: History, place: Path, room: int = 0) -> list[str]:
    """The narrative of each row, in order; `room` tokens of model.max_length are left free behind it.

    Raises InputError where that leaves none for a narrative, or the base reads no sequence so long.
    """
    settings, telling = author.settings, author.telling
    if room:
        left = settings.model.max_length - room
        if left < 16:
            what = f"{room} leave no room for a narrative within model.max_length {settings.model.max_length}"
            raise refuse("generation.max_new_tokens", what, "make it smaller; the run saw no longer sequences")
        telling = replace(telling, max_tokens=min(telling.max_tokens or left, left))
    prepared = prepare_once(settings, rows, history, telling, place, author.accelerator)
    splits = sorted(rows["split"].unique())
    told = pl.concat([prepared.narratives(split).select(*KEYS, "narrative") for split in splits]).collect()
    return rows.select(KEYS).join(told, on=KEYS, how="left", maintain_order="left")["narrative"].to_list()


def row_keys(rows: pl.DataFrame) -> np.ndarray:
    """What a row's random numbers hang on, uint64 [n]: subject and time alone, whatever rows are beside it."""
    subject = rows["subject_id"].cast(pl.Int64).to_numpy().view(np.uint64)
    time = rows["prediction_time"].dt.timestamp("us").to_numpy().view(np.uint64)
    return subject * _GOLDEN ^ time


def decoding_of(generation: GenerationSettings, seed: int) -> Decoding:
    """The settings as the writer takes them; a mode adds what it has of its own."""
    greedy = generation.mode == "answer" if generation.temperature is None else generation.temperature == 0
    return Decoding(
        max_new_tokens=generation.max_new_tokens or MAX_NEW_TOKENS,
        temperature=0.0 if greedy else generation.temperature or 1.0,
        top_p=generation.top_p,
        top_k=generation.top_k,
        seed=seed,
        batch_size=generation.batch_size,
        stops=(stop_at(generation.stop),) if generation.stop else (),
    )


def answer(
    author: Author, rows: pl.DataFrame, narratives: Sequence[str], advance: Callable[[int], None] = lambda _: None
) -> pl.DataFrame:
    """ANSWER_SCHEMA: an answer in words to the run's question about each row, and how likely each of its answers was.

    answer: what was written, up to a stop string (by default a line break). said: the one of model.answers that it
    begins with, ignoring case, as a word of its own; null where there is none. said_only: and nothing else was said.
    log_probability: the model's, of all that it wrote. probabilities: of the answers in their order, the share of
    each in the probability of them all; a classifier by label tokens predicts the same.
    """
    model, generation = author.settings.model, author.settings.generation
    assert author.model is not None  # no other engine writes answers
    prompt = prompt_for(author.settings, author.tokenizer)
    prompts = [prompt.lay(ids) for ids in encode_narratives(author.tokenizer, narratives)]
    sequences = written_answers(author.tokenizer, prompt, model.answers)
    longest = max(map(len, sequences))
    decoding = decoding_of(generation, author.settings.training.seed)
    decoding = replace(decoding, stops=decoding.stops or (stop_at(["\n"]),))
    if generation.constrained:
        vocabulary = causal_model(author.model).config.get_text_config().vocab_size
        decoding = replace(decoding, trie=make_trie(sequences, vocabulary), max_new_tokens=longest)
    elif generation.max_new_tokens is None:
        decoding = replace(decoding, max_new_tokens=longest + _SPARE_ANSWER_TOKENS)
    written = write(author.model, author.tokenizer, prompts, row_keys(rows), 1, decoding, advance)
    scores = log_probabilities(author.model, prompts, sequences, generation.batch_size)
    shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    texts = _up_to_stop(_texts_after(author.tokenizer, prompts, written), generation.stop or ("\n",))
    table = rows.select(KEYS).with_columns(
        answer=pl.Series(texts, dtype=pl.String).str.strip_chars(),
        log_probability=pl.Series(written.log_probability),
        probabilities=pl.Series(shares.tolist(), dtype=pl.List(pl.Float64)),
    )
    table = table.with_columns(_said(model.answers))
    return table.select(pl.col(name).cast(kind) for name, kind in ANSWER_SCHEMA.items())


def _said(answers: Sequence[str]) -> list[pl.Expr]:
    """said · said_only of the column `answer`; of two answers with one beginning the longer counts."""
    text = pl.col("answer").str.to_lowercase()
    said = pl.lit(None, dtype=pl.String)
    for word in sorted(answers, key=len):
        found = text.str.strip_prefix(word.lower())
        whole = text.str.starts_with(word.lower()) & ~found.str.contains(r"^\w")
        said = pl.when(whole).then(pl.lit(word)).otherwise(said)
    alone = text.str.strip_chars(" .;,!\n").is_in([word.lower() for word in answers])
    return [said.alias("said"), alone.alias("said_only")]


def continue_on(
    author: Author,
    prompts: Sequence[Sequence[int]],
    rows: pl.DataFrame,
    decoding: Decoding,
    advance: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """CONTINUATION_SCHEMA and `row` (the place of its row): generation.n_samples continuations of each prompt.

    continuation: the text up to, and without, the first of the stop strings. Patients' histories can be told from
    it: a table for the run directory, and nowhere else.
    """
    generation = author.settings.generation
    if generation.engine == "vllm":
        from epicrisis.llm.vllm_engine import write_with_vllm

        written = write_with_vllm(author.settings, author.tokenizer, prompts, generation.n_samples, decoding)
    else:
        assert author.model is not None
        written = write(
            author.model, author.tokenizer, prompts, row_keys(rows), generation.n_samples, decoding, advance
        )
    texts = _up_to_stop(_texts_after(author.tokenizer, prompts, written), generation.stop)
    table = rows.select(KEYS)[written.prompt].with_columns(
        row=pl.Series(written.prompt, dtype=pl.UInt32),
        sample=pl.Series(written.sample),
        continuation=pl.Series(texts, dtype=pl.String),
        ending=pl.Series(written.endings(), dtype=pl.String),
        n_tokens=pl.Series([len(ids) for ids in written.ids]),
        log_probability=pl.Series(written.log_probability),
    )
    return table.select("row", *(pl.col(name).cast(kind) for name, kind in CONTINUATION_SCHEMA.items()))


def sampled_risks(
    author: Author,
    rows: pl.DataFrame,
    narratives: Sequence[str],
    lags: np.ndarray,
    targets: Sequence[Target],
    advance: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """RISK_SCHEMA: futures of each row, sampled until the longest horizon, and the targets counted in them."""
    generation, narrator = author.settings.generation, author.narrator
    prompts = encode_narratives(author.tokenizer, [text + opening(narrator) for text in narratives])
    decoding = decoding_of(generation, author.settings.training.seed)
    longest = max(target.horizon for target in targets)
    decoding = replace(
        decoding,
        stops=(horizon_stop(narrator, lags, longest),),
        forbidden=() if generation.may_end else (author.tokenizer.eos_token_id,),
    )
    told = continue_on(author, prompts, rows, decoding, advance)
    ran_out = (told["ending"] == "length").to_numpy()
    sampled = Sampled(told["row"].to_numpy(), told["continuation"].to_list(), ran_out)
    return count_risks(sampled, rows, lags, targets, narrator)


def lags_of(narrator: Narrator, rows: pl.DataFrame, history: History) -> np.ndarray:
    """Microseconds from each row's last told event to its prediction time, int64 [n_rows]; 0 where none is dated."""
    terms = narrator.book.terms
    persons = terms.filter(pl.col("role").is_in(HEADER_ROLES))["code"]
    last = [
        events.filter(~pl.col("code").is_in(persons.implode())).group_by(KEYS).agg(pl.col("time").max()).collect()
        for _, events in history.shards()
    ]
    joined = rows.select(KEYS).join(pl.concat(last), on=KEYS, how="left", maintain_order="left")
    lag = joined["prediction_time"] - joined["time"]
    return lag.dt.total_microseconds().fill_null(0).to_numpy()


def _texts_after(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], written: Written) -> list[str]:
    """What was written, with the space that some tokenizers drop at the beginning of a text."""
    last = [list(prompts[place][-1:]) for place in written.prompt]
    before = texts_of(tokenizer, last)
    whole = texts_of(tokenizer, [one + ids for one, ids in zip(last, written.ids, strict=True)])
    return [text[len(start) :] for text, start in zip(whole, before, strict=True)]


def _up_to_stop(texts: Sequence[str], stops: Sequence[str]) -> list[str]:
    ends = [[place for place in map(text.find, stops) if place >= 0] for text in texts]
    return [text[: min(places)] if places else text for text, places in zip(texts, ends, strict=True)]

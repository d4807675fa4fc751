"""Tokens added to a base's vocabulary, each begun as the mean of its description's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from epicrisis.settings import InputError, Problem, refuse

FILE = "new_tokens.csv"
"""Beside an adapter: the tokens that its base must be given before it is loaded."""
_WHERE = "lora.new_code_tokens"


def read_new_tokens(path: Path) -> pl.DataFrame:
    """Columns token, description (str). InputError for a file that has not both, or repeats or omits a token."""
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise refuse(_WHERE, f"{path} is no CSV ({type(error).__name__})", "write token,description lines") from error
    if missing := sorted({"token", "description"} - set(table.columns)):
        raise refuse(_WHERE, f"{path} has no column {' and '.join(missing)}", "name the columns token,description")
    table = table.select(pl.col("token", "description").str.strip_chars().replace("", None))
    problems = []
    if table.is_empty():
        problems.append(Problem(_WHERE, f"{path} names no token", "add some, or leave the key out"))
    if n := table.filter(pl.any_horizontal(pl.all().is_null())).height:
        problems.append(Problem(_WHERE, f"{n} lines of {path} lack a token or its description", "complete them"))
    if n := table.height - table["token"].n_unique():
        problems.append(Problem(_WHERE, f"{n} tokens stand in {path} more than once", "keep one line for each"))
    if problems:
        raise InputError(problems)
    return table


def with_new_tokens(tokenizer: PreTrainedTokenizerBase, table: pl.DataFrame) -> PreTrainedTokenizerBase:
    """The tokenizer, which from now on reads each of these as one token wherever it stands as a word of its own."""
    known = tokenizer.get_vocab()
    if n := table["token"].is_in(list(known)).sum():
        raise refuse(_WHERE, f"{n} of the tokens are in this tokenizer's vocabulary already", "leave them out")
    # single_word: I10 is not read within I100
    tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=False) for token in table["token"]])
    return tokenizer


def add_rows(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: pl.DataFrame) -> None:
    """Give the base a row per new token, in both matrices: the mean over the tokens of its description.

    tokenizer: already with the new tokens. Raises InputError where a description has no token of its own.
    """
    ids: Any = tokenizer.convert_tokens_to_ids(table["token"].to_list())
    parts = [
        [i for i in described if i not in set(ids)]
        for described in tokenizer(table["description"].to_list(), add_special_tokens=False)["input_ids"]
    ]
    if n := sum(not part for part in parts):
        raise refuse(_WHERE, f"{n} descriptions consist of new tokens alone", "describe them in words")
    if len(tokenizer) > _matrices(base)[0].shape[0]:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        base.requires_grad_(False)
    for matrix in _matrices(base):
        means = torch.stack([matrix[part].float().mean(dim=0) for part in parts])
        with torch.no_grad():
            matrix[torch.tensor(ids, device=matrix.device)] = means.to(matrix.dtype)
    base.new_tokens = table.with_columns(id=pl.Series(ids))  # type: ignore[assignment]


def _matrices(base: PreTrainedModel) -> list[torch.Tensor]:
    """Token embedding and output layer [n_tokens, hidden]; once where they are one."""
    modules: list[Any] = [base.get_input_embeddings(), base.get_output_embeddings()]
    return list({id(module.weight): module.weight for module in modules}.values())


def new_tokens_of(base: PreTrainedModel) -> pl.DataFrame | None:
    """Columns token, description, id of what `add_rows` has added; None where nothing."""
    return getattr(base, "new_tokens", None)


def new_token_ids(base: PreTrainedModel) -> list[int]:
    """Ids of the tokens that `add_rows` has added."""
    table = new_tokens_of(base)
    return [] if table is None else table["id"].to_list()


def rows_of_base(base: PreTrainedModel, n_rows: int) -> int:
    """How many of the embedding's rows are the base's own."""
    return min([n_rows, *new_token_ids(base)])

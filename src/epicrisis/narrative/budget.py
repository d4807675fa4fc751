"""The token budget of a narrative: the header and the latest events stay, whole oldest events go."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from epicrisis.narrative.styles import Style

CountTokens = Callable[[list[str]], list[int]]


def within_budget(
    body: pl.DataFrame,
    phrases: pl.Series,
    headers: pl.DataFrame,
    style: Style,
    count_tokens: CountTokens,
    max_tokens: int,
) -> pl.DataFrame:
    """The events that fit, of body (row · phrase_id · group · opening), which is in time order.

    Each distinct phrase, opening and header is counted once. A narrative costs the sum of its parts:
    tokenizers that split at spaces and punctuation may join a few of them, never cut one in two. What is
    kept of a row is its tail: no event is told whose successor is not.
    """
    between = count_tokens([style.separator.rstrip()])[0]
    body = body.with_columns(phrases.gather(body["phrase_id"]).alias("phrase"))
    body = body.with_columns(
        phrase_tokens=_counted(body["phrase"], " {}", count_tokens),
        opening_tokens=_counted(body["opening"].str.strip_chars_end(" "), "{}", count_tokens),
    )
    heads = headers.select("row", header_tokens=_counted(headers["header"].fill_null(""), "{}", count_tokens))
    body = body.join(heads, on="row", how="left", maintain_order="left")
    # Summed from the last event backwards, a group's opening is paid for with the group's last event.
    last = (pl.col("group") != pl.col("group").shift(-1)).fill_null(True)
    paid = pl.when(last).then("opening_tokens").otherwise(between) + pl.col("phrase_tokens")
    total = paid.cum_sum(reverse=True).over("row") + pl.col("header_tokens").fill_null(0)
    return body.filter(total <= max_tokens)


def _counted(texts: pl.Series, form: str, count_tokens: CountTokens) -> pl.Series:
    distinct = texts.unique(maintain_order=True).rename("text")
    counts = count_tokens([form.replace("{}", text) for text in distinct]) if len(distinct) else []
    table = pl.DataFrame({"text": distinct, "tokens": pl.Series(counts, dtype=pl.Int64)})
    return texts.rename("text").to_frame().join(table, on="text", how="left", maintain_order="left")["tokens"]

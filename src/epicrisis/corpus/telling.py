"""How histories become token ids: the narrator, the token budget, the tokenizer, and what of it is fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from epicrisis.cohort import History, rows_fingerprint
from epicrisis.corpus.tokens import tokenizer_fingerprint
from epicrisis.narrative.lookups import Lookups
from epicrisis.narrative.narrator import Dates, Narrator, known_codes, make_narrator
from epicrisis.narrative.styles import Style
from epicrisis.narrative.values import Kind, count_values, fit_classes, merge_values
from epicrisis.tracking.stamps import mark_done, stage_done

EVENTS_PER_PART = 500_000
"""So many events are read at once when something is fitted on a history."""


@dataclass(frozen=True)
class Telling:
    """Everything that decides a narrative's token ids."""

    narrator: Narrator
    lookups: Lookups
    """What the narrator's words come from, for the coverage report."""
    max_tokens: int | None
    """The most tokens of a narrative, BOS included; None: no budget."""
    tokenizer: PreTrainedTokenizerBase

    def inputs(self) -> dict[str, str | int | None]:
        """What a finished stage's stamp remembers of this."""
        narrator = self.narrator
        return {
            **narrator.choice(),
            "narrator": narrator.fingerprint,
            "max_tokens": self.max_tokens,
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
        }


def narrator_once(
    train: History, lookups: Lookups, style: Style, dates: Dates, values: Kind | None, directory: Path
) -> Narrator:
    """The narrator that `fit_narrator` makes, kept in `directory`/narrator and fitted anew only for other inputs."""
    inputs = {
        "data": train.dataset.fingerprint(),
        "rows": rows_fingerprint(train.rows),
        "strict": train.strict,
        "lookups": lookups.fingerprint(),
        "told": [style.label, dates, values],
    }
    folder = directory / "narrator"
    if stage_done(directory, "narrator", inputs):
        return Narrator.load(folder, lookups)
    narrator = fit_narrator(train, lookups, style, dates, values)
    narrator.save(folder)
    mark_done(directory, "narrator", inputs, [folder])
    return narrator


def fit_narrator(
    train: History,
    lookups: Lookups,
    style: Style,
    dates: Dates = "relative",
    values: Kind | None = None,
) -> Narrator:
    """A narrator whose words are told apart, and whose value classes are fitted, by the train rows' visible events.

    Of several codes with the same words the one that train sees most often keeps them (see `build_book`).

    train: the history of rows of the train split. lookups: with the dataset's described codes, which are told
    apart as well. values: the kind of classes that numbers are told in; None tells the numbers.
    """
    train = latest(train)
    classes = None
    if values is not None:
        parts = (part.events().collect() for part in train.parts(EVENTS_PER_PART))
        classes = fit_classes(merge_values([count_values(events) for events in parts]), values)
    frequent = train.code_counts().sort(["n_events", "code"], descending=[True, False])["code"]
    described = lookups.codes["code"].unique().sort()
    return make_narrator(known_codes(frequent, described), lookups, style, dates, classes)


def latest(history: History) -> History:
    """The same for the last row of each subject only, whose visible events hold those of the earlier rows."""
    rows = history.rows.sort("subject_id", "prediction_time").unique("subject_id", keep="last", maintain_order=True)
    return replace(history, rows=rows)

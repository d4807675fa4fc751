"""The token budget of a narrative: whole events go, of the least important section first, its oldest first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from epicrisis.narrative.coded import NONE, changes
from epicrisis.narrative.items import Items
from epicrisis.narrative.layout import EVENT_SLOTS, HEADING, TITLE, Layout
from epicrisis.narrative.styles import Style

CountTokens = Callable[[pa.LargeStringArray], np.ndarray]
"""int [n]: how many tokens each piece of text is, as it stands inside a narrative."""


def row_lengths(layout: Layout, lengths: np.ndarray, n_rows: int) -> np.ndarray:
    """int64 [n_rows]: tokens of each narrative, the sum of its pieces."""
    return np.bincount(layout.row, weights=_costs(layout, lengths).sum(axis=1), minlength=n_rows).astype(np.int64)


def within_budget(items: Items, layout: Layout, lengths: np.ndarray, budget: int, style: Style) -> np.ndarray:
    """bool [n_items]: the items that stay.

    lengths: tokens of each piece of the layout. budget: tokens that each narrative may have.

    Events are kept in the order of their importance: by the priority of sections, within one from the latest
    to the oldest; the first that does not fit goes, and with it all that are less important. The event that
    is kept first in its group pays for the group's heading, and likewise for the section's title.
    """
    if not len(items):
        return np.zeros(0, dtype=bool)
    costs = _costs(layout, lengths)
    spent = costs[:, EVENT_SLOTS].sum(axis=1)
    latest_first = np.array([s.newest_first or s.picks == "header" for s in style.sections])[items.section]
    for slot, columns in ((TITLE, (items.row, items.section)), (HEADING, (items.row, items.section, items.group))):
        spent += _paid(costs[:, slot], changes(*columns), latest_first)
    return _used(items, spent, latest_first, style) <= budget


def _costs(layout: Layout, lengths: np.ndarray) -> np.ndarray:
    return (
        np.where(layout.slots == NONE, 0, lengths[layout.slots]) if len(lengths) else np.zeros(layout.slots.shape, int)
    )


def _paid(cost: np.ndarray, begins: np.ndarray, latest_first: np.ndarray) -> np.ndarray:
    """The cost of what opens each run, laid on the item of the run that is kept first."""
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(cost)) - 1
    paid = np.zeros_like(cost)
    paid[np.where(latest_first[starts], starts, ends)] = cost[starts]
    return paid


def _used(items: Items, spent: np.ndarray, latest_first: np.ndarray, style: Style) -> np.ndarray:
    """What is spent when an item is kept: on itself and on all that is more important in its row."""
    starts = np.flatnonzero(changes(items.row, items.section))
    ends = np.append(starts[1:], len(spent))
    run = np.repeat(np.arange(len(starts)), ends - starts)
    total = np.concatenate([[0], np.cumsum(spent)])
    forwards = total[1:] - total[starts][run]
    backwards = total[ends][run] - total[:-1]
    within = np.where(latest_first, forwards, backwards)
    return within + _more_important(items.row[starts], items.section[starts], total[ends] - total[starts], style)[run]


def _more_important(row: np.ndarray, section: np.ndarray, spent: np.ndarray, style: Style) -> np.ndarray:
    """For each section of each row, what the sections of the same row that come before it in priority spend."""
    first = np.flatnonzero(changes(row))
    place = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(row))))
    spent_by_section = np.zeros((len(first), len(style.sections)), dtype=np.int64)
    spent_by_section[place, section] = spent
    priorities = np.array([part.priority for part in style.sections])
    before = priorities[None, :] < priorities[section][:, None]
    return (spent_by_section[place] * before).sum(axis=1)

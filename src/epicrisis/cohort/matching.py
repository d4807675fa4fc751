"""Index dates for controls that have none, matched to the cases'.

A control without an index date keeps its whole record while a case's ends before its diagnosis, and a model
then learns who was cut rather than who fell ill. So each control is given the index date of a case like it:
incidence-density sampling (Lubin & Gail, Biometrics 1984;40:63–75), where a control must be under observation
when its case is diagnosed, with the case's sex, birth year and start of record as matching factors.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from epicrisis.events.meds import SPLITS, TIME

_DRAWS = 512
_NEAREST = 5
_DAYS_PER_YEAR = 365.25
_OTHER_SEX_YEARS = 1000.0
_ALIKE_YEARS = 1.0
_CROWDED_YEARS = 2.0


def match_index_dates(people: pl.DataFrame, seed: int) -> pl.DataFrame:
    """subject_id and index_date for every row of `people` without an index date; null where no case suits.

    people: subject_id, split, label, index_date, record_start, last_time, birth_time, sex. A case suits a
    control if the control's record covers the case's index date. Of 512 cases drawn at random from the
    control's split (from all splits where it has no case), one of the five nearest is taken at random, at
    most a year farther than the nearest. Near means: same sex, then the sum of the differences in birth year
    and in record start, in years, with unknown factors left out, and two years more for each time the case
    has already been given its even share of controls. Controls with short records choose first, since late
    dates do not suit them: so the controls' dates are spread as the cases' are. Seeded.
    """
    donors = people.filter(pl.col("label") & (pl.col("record_start") <= pl.col("index_date")))
    controls = people.filter(pl.col("index_date").is_null()).sort("subject_id")
    donors = donors.sort("subject_id", "index_date")
    sexes = {name: number for number, name in enumerate(people["sex"].drop_nulls().unique().sort())}
    matched = []
    for number, split in enumerate(SPLITS):
        mine = controls.filter(pl.col("split") == split)
        pool = donors.filter(pl.col("split") == split)
        cases = _factors(pool if pool.height else donors, sexes)
        chosen = _nearest_cases(_factors(mine, sexes), cases, [seed, number])
        dates = pl.Series("index_date", chosen, dtype=pl.Int64).cast(TIME)
        matched.append(mine.select("subject_id", dates))
    return pl.concat(matched)


def _factors(people: pl.DataFrame, sexes: dict[str, int]) -> dict[str, np.ndarray]:
    """Times in years (NaN where unknown), sex as a number, and the index dates in microseconds."""
    table = people.select(
        _years("record_start").alias("start"),
        _years("last_time").alias("last"),
        _years("index_date").alias("index"),
        pl.col("birth_time").dt.year().cast(pl.Float64).alias("birth"),
        pl.col("sex").replace_strict(sexes, default=None, return_dtype=pl.Float64),
        pl.col("index_date").cast(pl.Int64).fill_null(0).alias("index_us"),
    )
    return {name: table[name].to_numpy() for name in table.columns}


def _years(name: str) -> pl.Expr:
    return pl.col(name).cast(TIME).cast(pl.Int64) / (_DAYS_PER_YEAR * 86_400 * 1e6)


def _nearest_cases(controls: dict[str, np.ndarray], cases: dict[str, np.ndarray], seed: list[int]) -> list[int | None]:
    """Per control the index date (microseconds) of the case chosen for it, None where none suits."""
    rng = np.random.default_rng(seed)
    n_controls, n_cases = len(controls["start"]), len(cases["start"])
    chosen: list[int | None] = [None] * n_controls
    if n_cases == 0:
        return chosen
    n_given, even_share = np.zeros(n_cases), n_controls / n_cases
    shortest_first = np.argsort(controls["last"] - controls["start"], kind="stable")
    # the shares are counted between chunks, so a chunk is small beside the cases
    size = int(np.clip(n_cases // 4, 16, 1024))
    for start in range(0, n_controls, size):
        members = shortest_first[start : start + size]
        draws = _draw_cases(n_cases, len(members), rng)
        distance = _distance(
            {name: values[members, None] for name, values in controls.items()},
            {name: values[draws] for name, values in cases.items()},
        )
        crowding = _CROWDED_YEARS * np.floor(n_given / even_share)
        position, found = _one_of_the_nearest(distance + crowding[draws], rng)
        taken = draws[np.arange(len(members)), position]
        np.add.at(n_given, taken[found], 1)
        for member, case in zip(members[found], taken[found], strict=True):
            chosen[member] = int(cases["index_us"][case])
    return chosen


def _draw_cases(n_cases: int, n_controls: int, rng: np.random.Generator) -> np.ndarray:
    """Per control the positions of the cases considered: all where they are few."""
    if n_cases > _DRAWS:
        return rng.integers(0, n_cases, (n_controls, _DRAWS))
    return np.broadcast_to(np.arange(n_cases), (n_controls, n_cases))


def _distance(control: dict[str, np.ndarray], case: dict[str, np.ndarray]) -> np.ndarray:
    """Years between controls (rows) and cases (columns); infinite where the control is not observed then."""
    birth = np.nan_to_num(np.abs(control["birth"] - case["birth"]))
    start = np.nan_to_num(np.abs(control["start"] - case["start"]))
    known = ~np.isnan(control["sex"]) & ~np.isnan(case["sex"])
    other_sex = known & (control["sex"] != case["sex"])
    observed = (control["start"] <= case["index"]) & (case["index"] <= control["last"])
    return np.where(observed, birth + start + _OTHER_SEX_YEARS * other_sex, np.inf)


def _one_of_the_nearest(distance: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Per row a random one of its nearest columns, and whether the row has any."""
    n_near = min(_NEAREST, distance.shape[1])
    order = np.argpartition(distance, n_near - 1, axis=1)[:, :n_near]
    near = np.take_along_axis(distance, order, axis=1)
    ranks = np.argsort(near, axis=1, kind="stable")
    order, near = np.take_along_axis(order, ranks, axis=1), np.take_along_axis(near, ranks, axis=1)
    n_alike = (near <= near[:, :1] + _ALIKE_YEARS).sum(axis=1)
    pick = (rng.random(len(order)) * n_alike).astype(int)
    return order[np.arange(len(order)), pick], np.isfinite(near[:, 0])

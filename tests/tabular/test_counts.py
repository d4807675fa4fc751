"""Count features written out by hand: what is counted, what is fitted, what a missing value is."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from epicrisis.settings.problems import InputError
from epicrisis.tabular.counts import AGE, CountFeatures, fit_features, group_by_code

T0 = datetime(2020, 1, 1)
ROWS = pl.DataFrame({"subject_id": [2, 1, 1], "prediction_time": [T0, T0, T0 + timedelta(days=366)]})


def events(*lines: tuple[int, int, datetime | None, str, float | None]) -> pl.LazyFrame:
    """Visible events: subject, the year of its prediction time, time, code, value."""
    schema = {
        **{"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "time": pl.Datetime("us")},
        **{"code": pl.String, "numeric_value": pl.Float32},
    }
    times = {2020: T0, 2021: T0 + timedelta(days=366)}
    return pl.LazyFrame([(s, times[y], t, c, v) for s, y, t, c, v in lines], schema=schema, orient="row")


EVENTS = events(
    (1, 2020, datetime(1980, 1, 1), "MEDS_BIRTH", None),
    (1, 2020, T0, "LAB", 4.0),
    (1, 2020, T0, "LAB", 0.0),
    (1, 2020, T0, "LAB", None),
    (1, 2021, datetime(1980, 1, 1), "MEDS_BIRTH", None),
    (1, 2021, T0, "LAB", 4.0),
    (1, 2021, T0, "LAB", float("nan")),
    (1, 2021, T0, "DX", None),
    (2, 2020, None, "SEX", None),
    (3, 2020, T0, "LAB", 9.0),  # of no row asked about
)


def test_by_hand() -> None:
    table = group_by_code(ROWS, [EVENTS])
    features = fit_features(table, min_subjects=1)
    assert features.codes == ("DX", "LAB", "MEDS_BIRTH", "SEX")
    assert features.value_codes == ("LAB",)
    found = features.for_trees(table)
    assert sparse.issparse(found)
    assert found.shape == (3, 6) == (3, len(features.names))
    log = np.log1p
    age = [40 * 365.25 / 365.25, 40 + 366 / 365.25]
    expected = np.array(
        [
            [0, 0, 0, log(1), 0, 0],
            [0, log(3), log(1), 0, 0, age[0]],
            [log(1), log(2), log(1), 0, 4, age[1]],
        ]
    )
    assert found.toarray() == pytest.approx(expected)
    # A last value of zero is there; a missing one is not.
    assert found[1].nnz == 4
    assert found[0].nnz == 1


def test_linear_features_tell_an_average_value_from_a_missing_one() -> None:
    features = fit_features(group_by_code(ROWS, [EVENTS]), min_subjects=1)
    found = features.for_linear(group_by_code(ROWS, [EVENTS])).toarray()
    lab, age = found[:, 4], found[:, 5]
    assert lab == pytest.approx([0, -1, 1])
    assert age == pytest.approx([0, -1, 1])
    assert found[:, 6:].tolist() == [[0, 0], [1, 1], [1, 1]]


def test_a_value_far_out_is_held_at_five_standard_deviations() -> None:
    rows = pl.DataFrame({"subject_id": range(50), "prediction_time": [T0] * 50})
    values = [(i, 2020, T0, "LAB", 1.0 + i % 2) for i in range(49)] + [(49, 2020, T0, "LAB", 1e9)]
    table = group_by_code(rows, [events(*values)])
    assert fit_features(table).for_linear(table).toarray()[49, 1] == 5.0


def test_codes_of_too_few_subjects_are_left_out() -> None:
    # Two rows of one subject are one subject.
    assert fit_features(group_by_code(ROWS, [EVENTS]), min_subjects=2).codes == ()
    assert fit_features(group_by_code(ROWS, [EVENTS]), min_subjects=2).names == (f"last {AGE}",)


def test_unknown_codes_and_empty_records_are_borne() -> None:
    features = fit_features(group_by_code(ROWS, [EVENTS]), min_subjects=1)
    rows = pl.DataFrame({"subject_id": [7, 8], "prediction_time": [T0, T0]})
    found = features.for_trees(group_by_code(rows, [events((8, 2020, T0, "NEW", 1.0))]))
    assert found.shape == (2, 6)
    assert found.nnz == 0
    assert group_by_code(rows, []).codes.is_empty()


def test_shards_and_their_order_make_no_difference() -> None:
    whole = group_by_code(ROWS, [EVENTS])
    apart = group_by_code(ROWS, [EVENTS.filter(pl.col("subject_id") == 2), EVENTS.filter(pl.col("subject_id") != 2)])
    features = fit_features(whole, min_subjects=1)
    assert np.array_equal(features.for_linear(whole).toarray(), features.for_linear(apart).toarray())
    backwards = group_by_code(ROWS[::-1], [EVENTS])
    assert np.array_equal(features.for_linear(whole).toarray()[::-1], features.for_linear(backwards).toarray())


def test_a_part_of_the_rows_is_what_grouping_them_alone_gives() -> None:
    whole, alone = group_by_code(ROWS, [EVENTS]), group_by_code(ROWS[1:], [EVENTS])
    features = fit_features(whole, min_subjects=1)
    assert np.array_equal(features.for_trees(whole.between(1, 3)).toarray(), features.for_trees(alone).toarray())


def test_saved_and_loaded(tmp_path: Path) -> None:
    features = fit_features(group_by_code(ROWS, [EVENTS]), min_subjects=1)
    features.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.json", "features.safetensors"]
    loaded = CountFeatures.load(tmp_path)
    assert (loaded.codes, loaded.value_codes, loaded.fitted_on) == (features.codes, features.value_codes, "train")
    assert np.array_equal(loaded.mean, features.mean)
    assert np.array_equal(loaded.spread, features.spread)
    (tmp_path / "features.safetensors").unlink()
    with pytest.raises(InputError, match=r"features.safetensors is missing"):
        CountFeatures.load(tmp_path)

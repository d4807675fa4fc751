"""The synthetic cohort: what it holds, and that its true risks are the truth."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from epicrisis.events import synthetic_outcomes as outcomes
from epicrisis.events.synthetic import LABELS, LOOKUPS, synthesize
from epicrisis.events.synthetic_vocabulary import (
    CHAPTER_TITLES,
    ICD,
    build_vocabulary,
    chapter_of,
    lookup_key,
    parents_of,
)
from epicrisis.settings.problems import InputError

SPLITS = ("train", "tuning", "held_out")
SUBJECTS = 4_000
NOVEL, UNDESCRIBED = 0.05, 0.1
ROW = ["subject_id", "prediction_time"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "cohort"
    synthesize(root, SUBJECTS, 7, shard_size=2_500, novel_code_probability=NOVEL, undescribed_code_share=UNDESCRIBED)
    return root


@pytest.fixture(scope="module")
def events(cohort: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(cohort.glob("data/*/*.parquet"))])


@pytest.fixture(scope="module")
def visible(cohort: Path, events: pl.DataFrame) -> pl.DataFrame:
    return seen(events, table(cohort, "labels", "cancer"))


def table(root: Path, kind: str, task: str) -> pl.DataFrame:
    parts = [pl.read_parquet(root / kind / task / f"{s}.parquet").with_columns(split=pl.lit(s)) for s in SPLITS]
    return pl.concat(parts)


def seen(events: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    joined = events.join(rows.select(ROW), on="subject_id", maintain_order="left")
    return joined.filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time")))


def with_risk(root: Path, task: str) -> pl.DataFrame:
    """Labels beside true risks; line by line the same rows, as they are written."""
    labels, oracle = table(root, "labels", task), table(root, "oracle", task)
    assert labels.select(ROW).equals(oracle.select(ROW))
    return labels.with_columns(oracle["true_risk"])


def fingerprint(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Writing


def test_same_seed_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthesize(tmp_path / name, 60, seed)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a")["data/train/0.parquet"] != fingerprint(tmp_path / "c")["data/train/0.parquet"]


def test_a_subject_is_the_same_in_a_larger_cohort_and_in_other_shards(tmp_path: Path) -> None:
    synthesize(tmp_path / "small", 30, 3)
    synthesize(tmp_path / "large", 50, 3, shard_size=20)
    small = pl.read_parquet(tmp_path / "small/data/*/*.parquet").sort("subject_id", maintain_order=True)
    large = pl.read_parquet(tmp_path / "large/data/*/*.parquet").sort("subject_id", maintain_order=True)
    assert small.equals(large.filter(pl.col("subject_id") <= 30))


def test_shards_are_written_one_by_one_and_hold_all_subjects(cohort: Path, events: pl.DataFrame) -> None:
    names = {str(path.relative_to(cohort / "data")) for path in cohort.glob("data/*/*.parquet")}
    assert names == {f"{split}/{shard}.parquet" for split in SPLITS for shard in (0, 1)}
    assert events["subject_id"].n_unique() == SUBJECTS


def test_progress_adds_up_to_the_subjects(tmp_path: Path) -> None:
    steps: list[int] = []
    synthesize(tmp_path / "c", 1_200, 0, progress=steps.append)
    assert sum(steps) == 1_200
    assert len(steps) > 1


def test_every_subject_is_in_one_split_and_in_its_folder(cohort: Path) -> None:
    splits = pl.read_parquet(cohort / "metadata" / "subject_splits.parquet")
    assert splits["subject_id"].to_list() == list(range(1, SUBJECTS + 1))
    shares = dict(splits["split"].value_counts().iter_rows())
    assert [shares[split] / SUBJECTS for split in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    for split in SPLITS:
        of_split = set(splits.filter(pl.col("split") == split)["subject_id"])
        assert set(pl.read_parquet(cohort / "data" / split / "*.parquet")["subject_id"]) == of_split
        for task in LABELS:
            assert set(pl.read_parquet(cohort / "labels" / task / f"{split}.parquet")["subject_id"]) <= of_split


def test_files_have_the_meds_schema_and_order(cohort: Path) -> None:
    for path in cohort.glob("data/*/*.parquet"):
        shard = pl.read_parquet(path)
        assert dict(shard.schema) == {
            "subject_id": pl.Int64(),
            "time": pl.Datetime("us"),
            "code": pl.String(),
            "numeric_value": pl.Float32(),
            "text_value": pl.String(),
            "unit": pl.String(),
        }
        assert shard.select("subject_id", "time").equals(
            shard.select("subject_id", "time").sort("subject_id", "time", nulls_last=False)
        )
        assert shard["code"].null_count() == 0
        assert not shard["numeric_value"].is_nan().any()
    about = json.loads((cohort / "metadata" / "dataset.json").read_text())
    assert about["meds_version"].startswith("0.4")


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds something"):
        synthesize(tmp_path, 20, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_all_impossible_arguments_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        synthesize(tmp_path / "c", 0, -1, novel_code_probability=2, split_shares=(0.5, 0.1, 0.1), mean_visits=1)
    wheres = [problem.where for problem in refusal.value.problems]
    assert wheres == ["n_subjects", "seed", "mean_visits", "novel_code_probability", "split_shares"]


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "c", 20, 0, progress=stop)
    assert list(tmp_path.iterdir()) == []


# Codes


def lookup(name: str, key: str = "code") -> pl.DataFrame:
    return pl.read_csv(LOOKUPS / f"{name}_lookup.csv", infer_schema=False).rename({key: "code"})


@pytest.mark.parametrize(
    ("name", "key"), [("medical", "code"), ("lab", "code"), ("region", "regionid"), ("time", "code")]
)
def test_lookups_have_no_duplicates_and_no_empty_terms(name: str, key: str) -> None:
    terms = lookup(name, key)
    assert terms["code"].is_unique().all()
    assert terms.select(pl.nth(0, 1).null_count()).row(0) == (0, 0)


def test_every_code_but_the_undescribed_is_in_a_lookup_or_the_datasets_own(cohort: Path) -> None:
    known = {name: set(lookup(name, key)["code"]) for name, key in (("medical", "code"), ("lab", "code"))}
    known["region"] = set(lookup("region", "regionid")["code"])
    codes = pl.read_parquet(cohort / "metadata" / "codes.parquet")
    undescribed = set(build_vocabulary(UNDESCRIBED).undescribed)
    for code, description, parents in codes.iter_rows():
        key = lookup_key(code)
        in_lookup = key is not None and key[1] in known[key[0]]
        assert (description is None) == (code in undescribed)
        assert in_lookup == (key is not None and code not in undescribed)
        assert set(parents) <= set(codes["code"])
    forms = {f"ICD10CM//{code}" for code in ("S72.001A", "C7A.00", "M1A.00X0", "Z3A.20", "E11.65")}
    assert forms <= set(codes["code"])


def test_the_set_share_of_codes_is_undescribed_and_most_of_them_have_a_parent(events: pl.DataFrame) -> None:
    vocabulary = build_vocabulary(UNDESCRIBED)
    used = set(events["code"]) & set(vocabulary.codes())
    undescribed = used & set(vocabulary.undescribed)
    assert len(undescribed) / len(used) == pytest.approx(UNDESCRIBED, abs=0.02)
    assert sum(bool(parents_of(code)) for code in undescribed) > len(undescribed) / 2


def test_the_set_share_of_everyday_diagnoses_is_novel(cohort: Path, events: pl.DataFrame) -> None:
    known = set(pl.read_parquet(cohort / "metadata" / "codes.parquet")["code"])
    everyday = set(build_vocabulary(UNDESCRIBED).diagnoses)
    codes = events["code"].filter(events["code"].str.starts_with(ICD))
    novel = codes.filter(~codes.is_in(list(known)))
    plain = codes.filter(codes.is_in(list(everyday)))
    assert len(novel) / (len(novel) + len(plain)) == pytest.approx(NOVEL, abs=0.01)
    assert not set(novel.str.slice(len(ICD))) & set(lookup("medical")["code"])


def test_measurements_carry_value_and_unit(events: pl.DataFrame) -> None:
    labs = lookup("lab").with_columns(pl.col("low", "high").cast(pl.Float64))
    measured = events.filter(pl.col("code").str.starts_with("LOINC//")).with_columns(pl.col("code").str.slice(7))
    both = measured.join(labs, on="code", how="left", suffix="_expected")
    assert both["unit"].equals(both["unit_expected"], null_equal=True)
    worded = pl.col("code") == "5804-0"
    assert both.filter(~worded)["numeric_value"].null_count() == 0
    assert both.filter(worded)["text_value"].null_count() == 0
    normal = (
        both.drop_nulls("high").group_by("code").agg(share=pl.col("numeric_value").is_between("low", "high").mean())
    )
    assert normal["share"].min() > 0.2


# Labels are what the record says


def test_histories_are_short_enough_to_be_read(visible: pl.DataFrame) -> None:
    dated = visible.filter(pl.col("time").is_not_null()).height / SUBJECTS
    assert 30 < dated < 45


def test_cancer_labels_and_index_dates_agree_with_the_record(cohort: Path, events: pl.DataFrame) -> None:
    sites = pl.col("code").is_in([ICD + site for site in outcomes.words.CANCER_SITES])
    found = events.filter(sites).group_by("subject_id").agg(found=pl.col("time").min())
    labels = table(cohort, "labels", "cancer").join(found, on="subject_id", how="left")
    assert (labels["found"] > labels["prediction_time"]).drop_nulls().all()
    within = (pl.col("found") <= pl.col("prediction_time") + outcomes.HORIZON).fill_null(False)
    assert labels.select((within == pl.col("boolean_value")).all()).item()
    assert 0.25 < labels["boolean_value"].mean() < 0.35

    dates = pl.read_csv(cohort / "labels" / "cancer_index_dates.csv", try_parse_dates=True)
    assert dates.columns == ["subject_id", "site", "cancerdate", "is_case"]
    assert dates["subject_id"].to_list() == list(range(1, SUBJECTS + 1))
    both = dates.join(found, on="subject_id", how="left")
    assert both["cancerdate"].equals(both["found"].dt.date(), null_equal=True)
    assert both["is_case"].equals(both["found"].is_not_null())


def test_time_to_event_counts_days_to_cancer_or_end_of_observation(cohort: Path) -> None:
    survival = table(cohort, "labels", "time_to_event")
    cancer = table(cohort, "labels", "cancer")
    assert survival["event_observed"].mean() > cancer["boolean_value"].mean()
    early = (survival["float_value"] <= 365) & survival["event_observed"]
    assert early.equals(cancer["boolean_value"])
    assert survival.filter(~pl.col("event_observed"))["float_value"].min() > 365


def test_stay_labels_agree_with_the_record(cohort: Path, events: pl.DataFrame) -> None:
    stays = table(cohort, "labels", "length_of_stay").with_columns(
        prolonged=table(cohort, "labels", "prolonged_stay")["boolean_value"],
        died=table(cohort, "labels", "in_hospital_mortality")["boolean_value"],
    )
    end = events.filter(pl.col("code") == "VISIT_END//inpatient").group_by("subject_id").agg(end=pl.col("time").max())
    death = events.filter(pl.col("code") == "MEDS_DEATH").select("subject_id", death="time")
    stays = stays.join(end, on="subject_id").join(death, on="subject_id", how="left")
    days = (stays["end"] - stays["prediction_time"]).dt.total_minutes() / 1440 + 1
    expected = days.cut([3, 7, 14], labels=list(outcomes.STAY_CLASSES)).cast(pl.String)
    assert stays["categorical_value"].equals(expected, check_names=False)
    assert stays["prolonged"].equals(days > 7, check_names=False)
    assert stays["died"].equals(stays["death"].is_not_null(), check_names=False)
    assert (stays["death"] == stays["end"]).drop_nulls().all()
    assert stays["categorical_value"].n_unique() == 4
    assert 0.08 < stays["died"].mean() < 0.2


def test_diagnoses_are_the_chapters_of_new_categories_within_a_year(cohort: Path, events: pl.DataFrame) -> None:
    labels = table(cohort, "labels", "diagnoses")
    rows = labels.select(ROW).unique(maintain_order=True)
    assert rows.height == SUBJECTS
    coded = events.filter(pl.col("code").str.starts_with(ICD)).join(rows, on="subject_id")
    coded = coded.with_columns(category=pl.col("code").str.slice(len(ICD), 3))
    before = coded.filter(pl.col("time") <= pl.col("prediction_time")).select("subject_id", "category")
    within = pl.col("time").is_between("prediction_time", pl.col("prediction_time") + outcomes.HORIZON, closed="right")
    fresh = coded.filter(within).join(before, on=["subject_id", "category"], how="anti")
    titles = {category: CHAPTER_TITLES[chapter_of(category)] for category in fresh["category"].unique()}
    expected = fresh.select("subject_id", title=pl.col("category").replace_strict(titles)).unique()
    found = labels.drop_nulls("categorical_value").select("subject_id", title="categorical_value")
    assert set(found.iter_rows()) == set(expected.iter_rows())


# True risks


def test_the_written_risk_is_a_function_of_the_visible_record(cohort: Path, visible: pl.DataFrame) -> None:
    risk = outcomes.cancer_risk(outcomes.cancer_signs(visible))
    written = table(cohort, "oracle", "cancer")
    both = written.join(risk, on=ROW, suffix="_recomputed")
    assert both.height == SUBJECTS
    np.testing.assert_allclose(both["true_risk"], both["true_risk_recomputed"], rtol=1e-12)


def test_the_control_outcome_knows_no_order_no_time_and_no_value(cohort: Path, visible: pl.DataFrame) -> None:
    written = table(cohort, "oracle", "order_free")
    known = visible.with_columns(numeric_value=pl.lit(0.0, pl.Float32))
    undated = known.filter(pl.col("code") != "MEDS_BIRTH").with_columns(pl.col("time").reverse().over(ROW))
    shuffled = pl.concat([known.filter(pl.col("code") == "MEDS_BIRTH"), undated.reverse()])
    both = written.join(outcomes.presence_risk(shuffled), on=ROW, suffix="_again")
    assert both.height == SUBJECTS
    np.testing.assert_allclose(both["true_risk"], both["true_risk_again"], rtol=1e-12)
    assert written["true_risk"].n_unique() > 100


def test_the_written_stay_risks_are_functions_of_the_visible_record(cohort: Path, events: pl.DataFrame) -> None:
    written = table(cohort, "oracle", "in_hospital_mortality")
    signs = outcomes.admission_signs(seen(events, written))
    both = written.join(signs.with_columns(again=outcomes.death_risk(signs)), on=ROW)
    assert both.height == written.height
    np.testing.assert_allclose(both["true_risk"], both["again"], rtol=1e-12)
    classes = table(cohort, "oracle", "length_of_stay")["true_risk"].list.sum()
    np.testing.assert_allclose(classes, 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("task", "lowest", "highest"),
    [
        ("cancer", 0.85, 0.88),
        ("order_free", 0.74, 0.82),
        ("in_hospital_mortality", 0.78, 0.88),
        ("prolonged_stay", 0.74, 0.84),
    ],
)
def test_the_oracle_is_good_and_calibrated(cohort: Path, task: str, lowest: float, highest: float) -> None:
    rows = with_risk(cohort, task)
    assert lowest < roc_auc_score(rows["boolean_value"], rows["true_risk"]) < highest
    rows = rows.sort("true_risk").with_row_index("place")
    deciles = rows.group_by(pl.col("place") * 10 // rows.height).agg(
        gap=(pl.col("boolean_value").mean() - pl.col("true_risk").mean()).abs(),
        noise=(pl.col("true_risk") * (1 - pl.col("true_risk"))).mean().sqrt() / pl.len().sqrt(),
    )
    assert (deciles["gap"] < 4 * deciles["noise"]).all()


def test_chapter_risks_are_calibrated(cohort: Path) -> None:
    risks = table(cohort, "oracle", "diagnoses")
    labels = table(cohort, "labels", "diagnoses").drop_nulls().select("subject_id", "categorical_value", label=1)
    both = risks.join(labels, left_on=["subject_id", "class"], right_on=["subject_id", "categorical_value"], how="left")
    chapters = both.group_by("class").agg(
        gap=(pl.col("label").fill_null(0).mean() - pl.col("true_risk").mean()).abs(),
        noise=(pl.col("true_risk") * (1 - pl.col("true_risk"))).sum().sqrt() / pl.len(),
    )
    assert chapters.height == len(CHAPTER_TITLES)
    assert (chapters["gap"] < 4 * chapters["noise"]).all()


def test_counts_do_not_reach_the_oracle(cohort: Path, visible: pl.DataFrame) -> None:
    counts = visible.group_by(ROW).agg(pl.col("code")).explode("code")
    counts = counts.to_dummies("code").group_by(ROW).sum()
    rows = with_risk(cohort, "cancer").join(counts, on=ROW, maintain_order="left")
    age = outcomes.cancer_signs(visible).select(*ROW, "age")
    rows = rows.join(age, on=ROW, maintain_order="left")
    train = (rows["split"] == "train").to_numpy()
    columns = [name for name in rows.columns if name.startswith("code_")]
    features = np.column_stack([np.log1p(rows.select(columns).to_numpy()), rows["age"]])
    features = StandardScaler().fit(features[train]).transform(features)
    label = rows["boolean_value"].to_numpy()
    model = LogisticRegression(C=0.01, max_iter=1_000).fit(features[train], label[train])
    reached = roc_auc_score(label[~train], model.predict_proba(features[~train])[:, 1])
    best = roc_auc_score(label[~train], rows["true_risk"].to_numpy()[~train])
    assert 0.65 < reached < best - 0.05


# Each effect by itself, on a record that can be read

LANDMARK = datetime(2020, 1, 1)


def record(*coded: tuple[datetime, str], haemoglobin: tuple[float, ...] = ()) -> pl.DataFrame:
    """The visible events of one woman of 60 who never smoked."""
    base = [(datetime(1960, 1, 1), "MEDS_BIRTH", None), (datetime(2018, 1, 1), "LIFESTYLE//SMOKING_NEVER", None)]
    values = [(datetime(2019, 1 + month, 5), "LOINC//718-7", value) for month, value in enumerate(haemoglobin)]
    lines = sorted([*base, *((time, code, None) for time, code in coded), *values], key=lambda line: line[0])
    columns = ["time", "code", "numeric_value"]
    schema = {"time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    events = pl.DataFrame([dict(zip(columns, line, strict=True)) for line in lines], schema=schema)
    return events.with_columns(subject_id=1, prediction_time=pl.lit(LANDMARK))


def risk(*coded: tuple[datetime, str], haemoglobin: tuple[float, ...] = ()) -> float:
    return outcomes.cancer_risk(outcomes.cancer_signs(record(*coded, haemoglobin=haemoglobin)))["true_risk"].item()


def test_order_matters() -> None:
    early, late = datetime(2018, 3, 1), datetime(2018, 9, 1)
    dangerous = risk((early, "ICD10CM//R63.4"), (late, "ICD10CM//D50.9"))
    harmless = risk((early, "ICD10CM//D50.9"), (late, "ICD10CM//R63.4"))
    assert harmless == risk()
    assert dangerous > 4 * harmless


def test_timing_matters() -> None:
    recent, old = risk((datetime(2019, 6, 1), "ICD10CM//K92.1")), risk((datetime(2018, 6, 1), "ICD10CM//K92.1"))
    assert old == risk()
    assert recent > 2 * old


def test_the_trend_matters_and_the_last_value_does_not() -> None:
    falling = risk(haemoglobin=(14.5, 13.6, 12.5))
    assert falling > 1.8 * risk(haemoglobin=(12.5, 12.5, 12.5))
    assert risk(haemoglobin=(10.0, 11.0, 12.5)) == risk(haemoglobin=(12.5, 12.5, 12.5)) == risk()
    assert risk(haemoglobin=(14.5, 12.5)) == risk()


def test_smoking_counts_as_last_recorded() -> None:
    smoker = risk((datetime(2018, 2, 1), "LIFESTYLE//SMOKING_CURRENT"))
    stopped = risk(
        (datetime(2018, 2, 1), "LIFESTYLE//SMOKING_CURRENT"), (datetime(2019, 2, 1), "LIFESTYLE//SMOKING_FORMER")
    )
    assert smoker > 2 * stopped == 2 * risk()

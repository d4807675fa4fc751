"""Code embeddings begun from published vectors: whose vector each code got, and that it is that one."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.settings import InputError
from epicrisis.structured.age_visit_model import BodyShape, code_table
from epicrisis.structured.clinvec import SOURCES, from_clinvec, from_file, report_text
from epicrisis.structured.clinvec_codes import OTHER, normal_key, parents_of, place_code
from epicrisis.structured.clinvec_resize import chosen_method, resize
from epicrisis.structured.clinvec_vectors import read_clinvec, read_vectors
from epicrisis.structured.vocabulary import SPECIALS

N_DIMS = 6
CODES = {
    "icd10cm": ("E11", "S72.001A", "C7A.00", "M1A.0", "Z3A.20", "I10"),
    "atc": ("N02BE01", "N02", "A"),
    "cpt": ("99213", "0001F"),
    "rxnorm": ("197361",),
    "phecode": ("008.50", "250", "250.2"),
}


def vectors_of(vocabulary: str) -> np.ndarray:
    generator = np.random.default_rng(sorted(CODES).index(vocabulary))
    return generator.normal(size=(len(CODES[vocabulary]), N_DIMS)).astype(np.float32)


def write_csv(path: Path, keys: tuple[str, ...], vectors: np.ndarray, first: str | None = "code") -> None:
    names = [f"V{number}" for number in range(1, vectors.shape[1] + 1)]
    lines = [",".join([first, *names] if first is not None else names)]
    lines += [",".join([key, *map(repr, map(float, row))]) for key, row in zip(keys, vectors, strict=True)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As ClinVec is published: rows named by node_index, which the header leaves out, and the table of nodes."""
    nodes, number = [], 100
    for vocabulary, codes in CODES.items():
        indices = tuple(str(number + place) for place in range(len(codes)))
        number += len(codes)
        write_csv(tmp_path / f"ClinVec_{vocabulary}.csv", indices, vectors_of(vocabulary), first=None)
        nodes += [f"{index}\t{code}:{vocabulary}\tname" for index, code in zip(indices, codes, strict=True)]
    (tmp_path / "ClinGraph_nodes.csv").write_text("\n".join(["node_index\tnode_id\tnode_name", *nodes]) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("code", "vocabulary", "key"),
    [
        ("ICD10CM//S72.001A", "icd10cm", "S72001A"),
        ("ICD10CM//C7A.00", "icd10cm", "C7A00"),
        ("ICD10CM//M1A.0", "icd10cm", "M1A0"),
        ("ICD10CM//Z3A.20", "icd10cm", "Z3A20"),
        ("S72.001A", "icd10cm", "S72001A"),
        ("DIAGNOSIS//ICD//10//E1165", "icd10cm", "E1165"),
        ("ICD10/I10", "icd10cm", "I10"),
        ("ATC//N02BE01", "atc", "N02BE01"),
        ("N02BE01", "atc", "N02BE01"),
        ("CPT//99213", "cpt", "99213"),
        ("RxNorm//197361", "rxnorm", "197361"),
        ("DRUG//RXNORM//197361", "rxnorm", "197361"),
        ("PheCode//008.50", "phecode", "8.5"),
        ("99213", OTHER, None),
        ("ICD10CM//e11", OTHER, None),
        ("LOINC//2236-8", OTHER, None),
        ("[MASK]", OTHER, None),
    ],
)
def test_a_code_is_placed_in_its_vocabulary(code: str, vocabulary: str, key: str | None) -> None:
    placed = place_code(code)
    assert (placed.vocabulary, placed.key) == (vocabulary, key)


@pytest.mark.parametrize(
    ("vocabulary", "key", "parents"),
    [
        ("icd10cm", "E1165", ["E116", "E11"]),
        ("icd10cm", "E11", []),
        ("atc", "N02BE01", ["N02BE", "N02B", "N02", "N"]),
        ("atc", "N02", ["N"]),
        ("phecode", "250.23", ["250.2", "250"]),
        ("cpt", "99213", []),
        ("rxnorm", "197361", []),
    ],
)
def test_parents_nearest_first(vocabulary: str, key: str, parents: list[str]) -> None:
    assert parents_of(vocabulary, key) == parents


def test_every_vocabulary_keeps_its_own_vectors(folder: Path) -> None:
    prefixes = {"icd10cm": "ICD10CM", "atc": "ATC", "cpt": "CPT", "rxnorm": "RxNorm", "phecode": "PheCode"}
    tokens = [f"{prefixes[vocabulary]}//{code}" for vocabulary, codes in CODES.items() for code in codes]
    begun = from_clinvec(tokens, N_DIMS, folder)
    assert np.array_equal(begun.vectors, np.concatenate([vectors_of(vocabulary) for vocabulary in CODES]))
    assert begun.known.all()
    assert begun.report.rows() == [(name, len(codes), 0, 0) for name, codes in CODES.items()] + [(OTHER, 0, 0, 0)]


def test_a_novel_code_begins_as_its_nearest_parent_or_at_random(folder: Path) -> None:
    tokens = ["ICD10CM//E11.65", "ATC//N02BE51", "ATC//A10BA02", "PheCode//250.25", "ICD10CM//Q99.9", "CPT//11111", "X"]
    begun = from_clinvec(tokens, N_DIMS, folder)
    icd, atc, phecode = (vectors_of(name) for name in ("icd10cm", "atc", "phecode"))
    assert np.array_equal(begun.vectors[:4], np.stack([icd[0], atc[1], atc[2], phecode[2]]))
    assert [SOURCES[source] for source in begun.source] == ["parent"] * 4 + ["random"] * 3
    assert begun.report.filter(vocabulary="icd10cm").row(0) == ("icd10cm", 0, 1, 1)
    assert begun.report.filter(vocabulary=OTHER).row(0) == (OTHER, 0, 0, 1)
    assert not from_clinvec(tokens, N_DIMS, folder, hierarchy=False).known.any()
    assert report_text(begun.report).startswith("code vectors of 7 tokens (icd10cm: 0 exact, 1 from a parent, 1 at ")


def test_random_rows_have_the_vectors_mean_and_spread_and_follow_from_the_seed(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal([3, -1], [0.5, 2], (400, 2)).astype(np.float32)
    write_csv(tmp_path / "ClinVec_rxnorm.csv", tuple(str(number) for number in range(400)), vectors)
    tokens = [f"novel {number}" for number in range(4000)]
    first, again, other = (from_clinvec(tokens, 2, tmp_path, seed=seed).vectors for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.mean(axis=0) == pytest.approx(vectors.mean(axis=0), abs=0.15)
    assert first.std(axis=0) == pytest.approx(vectors.std(axis=0), rel=0.1)


KINDS = st.sampled_from(["ICD10CM//E11.65", "E11", "ICD10CM//Q99", "ATC//N02BE09", "CPT//99213", "LAB//x", "RxNorm//1"])


@given(
    own=st.lists(KINDS, max_size=30), hierarchy=st.booleans(), some=st.sets(st.sampled_from(sorted(CODES)), min_size=1)
)
def test_the_report_sums_to_the_vocabulary(tmp_path_factory, own: list[str], hierarchy: bool, some: set[str]) -> None:
    folder = tmp_path_factory.mktemp("vectors")
    for vocabulary in sorted(some):
        write_csv(folder / f"ClinVec_{vocabulary}.csv", CODES[vocabulary], vectors_of(vocabulary))
    tokens = [*SPECIALS, *own]
    begun = from_clinvec(tokens, N_DIMS, folder, hierarchy=hierarchy)
    assert begun.report.select(pl.sum_horizontal(SOURCES).sum()).item() == len(tokens)
    assert begun.vectors.shape == (len(tokens), N_DIMS)
    assert np.isfinite(begun.vectors).all()
    assert begun.report["random"].sum() == (~begun.known).sum()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_every_kind_of_file_gives_the_same(tmp_path: Path, suffix: str) -> None:
    keys, vectors = CODES["atc"], vectors_of("atc")
    path = tmp_path / f"ClinVec_atc{suffix}"
    if suffix == ".csv":
        write_csv(path, keys, vectors)
    elif suffix == ".parquet":
        columns = {f"V{place}": vectors[:, place] for place in range(N_DIMS)}
        pl.DataFrame({"code": keys, **columns}).write_parquet(path)
    else:
        np.save(path, vectors)
        path.with_suffix(".txt").write_text("\n".join(keys))
    read = read_clinvec(tmp_path, ("atc", "cpt"))
    assert list(read) == ["atc"]
    assert tuple(read["atc"].keys) == keys
    assert np.array_equal(read["atc"].vectors, vectors)


def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of ClinVec_atc\.csv"):
        read_clinvec(tmp_path / "..", ("atc",))
    with pytest.raises(InputError, match="is no folder"):
        read_clinvec(tmp_path / "nowhere", ("atc",))
    write_csv(tmp_path / "twice.csv", ("A", "A"), np.ones((2, 3), dtype=np.float32))
    with pytest.raises(InputError, match="1 codes are named more than once"):
        read_vectors(tmp_path / "twice.csv")
    (tmp_path / "words.csv").write_text("code,V1\nA,none\nB,1\n")
    with pytest.raises(InputError, match="1 vectors hold values that are missing"):
        read_vectors(tmp_path / "words.csv")
    (folder / "ClinGraph_nodes.csv").write_text("node_index\tnode_id\n100\tE11:icd10cm\n")
    with pytest.raises(InputError, match="5 of 6 rows of ClinVec_icd10cm are not in"):
        read_clinvec(folder, ("icd10cm",))
    write_csv(folder / "ClinVec_cpt.csv", ("1",), np.ones((1, 3), dtype=np.float32))
    (folder / "ClinGraph_nodes.csv").unlink()
    with pytest.raises(InputError, match="unequal dimensions"):
        read_clinvec(folder, ("icd10cm", "cpt"))


VECTORS = np.random.default_rng(3).normal(size=(40, N_DIMS)).astype(np.float32)


def test_truncate_and_both_ways_of_padding_keep_the_dimensions_that_are_there() -> None:
    assert np.array_equal(resize(VECTORS, 4, "truncate", 0), VECTORS[:, :4])
    for method in ("pad_smart", "pad_random"):
        wide = resize(VECTORS, 9, method, 0)
        assert wide.shape == (40, 9)
        assert np.array_equal(wide[:, :N_DIMS], VECTORS)
        assert wide[:, N_DIMS:].std() > 0.3
        assert np.array_equal(wide, resize(VECTORS, 9, method, 0))
        assert not np.array_equal(wide, resize(VECTORS, 9, method, 1))


def test_smart_padding_keeps_equal_codes_equal_and_random_padding_does_not() -> None:
    twins = np.stack([VECTORS[0], VECTORS[0]])
    smart, drawn = (resize(twins, 9, method, 0) for method in ("pad_smart", "pad_random"))
    assert np.array_equal(smart[0], smart[1])
    assert not np.array_equal(drawn[0], drawn[1])


def test_pca_keeps_distances_as_scikit_learn_does() -> None:
    from sklearn.decomposition import PCA

    ours, theirs = resize(VECTORS, 3, "pca", 0), PCA(3, svd_solver="full").fit_transform(VECTORS.astype(np.float64))
    assert np.abs(ours) == pytest.approx(np.abs(theirs), abs=1e-4)


def test_methods_that_cannot_reach_a_size_are_refused_and_auto_can_always() -> None:
    assert chosen_method("auto", 8, 4) == "pca"
    assert chosen_method("auto", 4, 8) == "pad_smart"
    assert chosen_method("auto", 8, 8) is None
    for method, source, target in [("truncate", 4, 8), ("pca", 4, 8), ("pad_smart", 8, 4), ("pad_random", 8, 4)]:
        with pytest.raises(InputError, match=r"set clinvec\.resize: auto"):
            chosen_method(method, source, target)


def shape(size: int) -> BodyShape:
    return BodyShape(size, 8, 1, 1, 8, 8, "years", 0.0)


@pytest.mark.parametrize("method", ["auto", "truncate", "pca", "learned_projection"])
def test_a_code_table_begins_as_the_vectors_say_and_learns(folder: Path, method: str) -> None:
    tokens = (*SPECIALS, "ICD10CM//E11", "ICD10CM//E11.65", "novel")
    begun = from_clinvec(tokens, 4, folder, method=method)
    codes = code_table(shape(4), len(tokens), begun)
    assert codes(torch.arange(len(tokens))).shape == (len(tokens), 4)
    assert torch.allclose(codes(torch.tensor([7])), codes(torch.tensor([8])))
    codes.table().pow(2).sum().backward()
    assert (codes.weight.grad[7:] != 0).any(dim=1).all()
    if method == "learned_projection":
        assert codes.projection is not None
        assert codes.projection.weight.grad.abs().sum() > 0
        assert torch.equal(codes.weight[7].detach(), torch.from_numpy(vectors_of("icd10cm")[0]))


def test_frozen_vectors_stay_and_codes_without_one_learn(folder: Path) -> None:
    tokens = (*SPECIALS, "ICD10CM//E11", "ICD10CM//E11.65", "novel")
    codes = code_table(shape(N_DIMS), len(tokens), from_clinvec(tokens, N_DIMS, folder), freeze=True)
    before = codes.table().detach().clone()
    optimizer = torch.optim.AdamW(codes.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (codes.table() - 1).pow(2).sum().backward()
        optimizer.step()
    moved = (codes.table().detach() != before).any(dim=1)
    assert moved.tolist() == [True] * len(SPECIALS) + [False, False, True]


def test_vectors_by_the_datas_own_codes(tmp_path: Path) -> None:
    write_csv(tmp_path / "med2vec.csv", ("LAB//x", "B"), np.array([[1, 2], [3, 4]], dtype=np.float32))
    begun = from_file(["[PAD]", "B", "LAB//x", "b"], 2, tmp_path / "med2vec.csv")
    assert begun.vectors[1:3].tolist() == [[3, 4], [1, 2]]
    assert begun.report.rows() == [("med2vec", 2, 0, 0), (OTHER, 0, 0, 2)]


@given(st.from_regex(r"[A-Z][0-9][0-9A-Z](\.[0-9A-Z]{1,4})?", fullmatch=True))
def test_dots_make_no_difference_to_an_icd10cm_code(code: str) -> None:
    assert normal_key("icd10cm", code) == place_code(f"ICD10CM//{code}").key
    assert place_code(f"ICD10CM//{code}") == place_code(f"ICD10CM//{code.replace('.', '')}")

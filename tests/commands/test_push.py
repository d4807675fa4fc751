"""`epicrisis push`: what leaves a run is a model that works elsewhere, and nothing of its patients."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import polars as pl
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from epicrisis.commands import main
from epicrisis.commands.hub_files import allowed_files, is_path, without_paths
from epicrisis.commands.model_card import licence_of
from epicrisis.encoders.tiny_bert import new_bert, train_wordpiece
from epicrisis.settings import InputError
from epicrisis.tracking.run_directory import open_run
from tests.commands.conftest import FIRST_SUBJECT, QUESTION, data_keys

SCORE = "predicted_boolean_probability"
LICENSE = ["--license", "apache-2.0"]
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "base.json"}
NARRATOR = {"narrator/book.parquet", "narrator/narrator.json"}
RECORD = {"README.md", "config.yaml", "hyperparameters.json", "summary.json"}
SMALL = [
    *("evaluation.bootstrap_resamples=100", "training.max_steps=3", "training.batch_size=4", "training.bf16=false"),
    *("training.learning_rate=2e-2", "training.load_in_4bit=false"),
]


@pytest.fixture(scope="module")
def run(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a clinical and a downstream adapter and a score head."""
    folder = tmp_path_factory.mktemp("to_push")
    model = [f"model.model_name={base}", f"model.question={QUESTION}", "model.max_length=192", "lora.r=4"]
    keys = [*data_keys(dataset), *model, *SMALL]
    assert main(["train", *keys, "stage=pretrain", f"training.output_dir={folder / 'clinical'}"]) == 0
    more = ["stage=classify", "model.head=score", f"model.clinical_adapter={folder / 'clinical'}"]
    assert main(["train", *keys, *more, f"training.output_dir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def pushed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would be uploaded of it; never written to."""
    folder = tmp_path_factory.mktemp("pushed") / "upload"
    command = ["push", str(run), "--repo_id", "someone/model", *LICENSE, "--to_folder", str(folder)]
    assert main(command) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def predicted(folder: Path, place: Path, *keys: str) -> pl.Series:
    """The held_out scores of an uploaded folder, read as its card says."""
    own = ["--config_filepath", str(folder / "config.yaml"), f"training.output_dir={folder}"]
    assert main(["predict", *own, f"evaluation.predictions_dir={place}", *keys]) == 0
    return pl.read_parquet(place / "held_out.parquet")[SCORE]


def test_the_files_are_those_of_the_allow_list(pushed: Path) -> None:
    adapters = {f"adapters/{name}/{file}" for name in ("clinical", "downstream") for file in ADAPTER}
    told = {f"adapters/{file}" for file in ("narrative.json", "score.safetensors", *NARRATOR)}
    assert set(content(pushed)) == adapters | told | RECORD


def test_nothing_of_a_patient_or_of_this_machine_is_in_any_byte(pushed: Path, run: Path, dataset: Path) -> None:
    everything = b"\n".join(content(pushed).values())
    subjects = pl.read_parquet(dataset / "metadata" / "subject_splits.parquet")["subject_id"]
    assert subjects.min() >= FIRST_SUBJECT
    for subject in subjects:
        assert str(subject).encode() not in everything
        assert int(subject).to_bytes(8, "little") not in everything
    narratives = pl.concat(pl.read_parquet(file) for file in (run / "narratives").rglob("*.parquet"))["narrative"]
    phrases = narratives.str.split("; ").explode().unique().drop_nulls()
    measured = phrases.filter(phrases.str.contains(r"[a-z].*\d\.\d"))
    assert len(measured) > 20
    assert not [phrase for phrase in measured if phrase.encode() in everything]
    assert not [text for text in narratives if text[:40].encode() in everything]
    assert str(dataset.parent.parent).encode() not in everything
    assert b"/home/" not in everything


def test_codes_of_few_train_subjects_stay_at_home(pushed: Path, run: Path, tmp_path: Path) -> None:
    counts = pl.concat(pl.read_parquet(file) for file in (run / "coverage").glob("*.codes.parquet"))
    counts = (
        counts.filter(pl.col("split") == "train").group_by(pl.col("code").cast(pl.String)).agg(pl.sum("n_subjects"))
    )
    common = counts.filter(pl.col("n_subjects") >= 10)["code"]
    assert set(pl.read_parquet(pushed / "adapters/narrator/book.parquet")["code"]) == set(common)
    command = [
        "push",
        str(run),
        *LICENSE,
        "--with_vocabulary",
        "--repo_id",
        "me/m",
        "--to_folder",
        str(tmp_path / "all"),
    ]
    assert main(command) == 0
    whole = (tmp_path / "all" / "adapters/narrator/book.parquet").read_bytes()
    assert whole == (run / "adapters/narrator/book.parquet").read_bytes()
    assert "left out of the code book" in re.sub(r"\s+", " ", (pushed / "README.md").read_text())
    assert "left out of the code book" not in (tmp_path / "all" / "README.md").read_text()


def test_the_card_tells_the_run(pushed: Path, run: Path) -> None:
    card = (pushed / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["library_name"]) == ("apache-2.0", "peft")
    assert "base_model" not in head, "the hub knows nothing of a base in a folder"
    results = pl.read_csv(run / "results.csv").filter(metric="auroc").row(0, named=True)
    told = f"| held_out | AUROC | {results['value']:.3f} ({results['lower']:.3f} to {results['upper']:.3f}) |"
    assert told in card
    for part in ("timeline@", "*cancer*", "research only", "epicrisis predict", 'subfolder="adapters/downstream"'):
        assert part in card, part
    assert "| train | " in card
    assert "{" not in card.split("---", 2)[2]
    sizes = json.loads((pushed / "hyperparameters.json").read_text())
    assert f"{sizes['n_parameters']:,} parameters" in card


def test_what_was_pushed_predicts_as_the_run_did(
    pushed: Path, run: Path, dataset: Path, base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pushed, tmp_path / "downloaded")
    keys = [*data_keys(dataset), f"model.model_name={base}", f"model.clinical_adapter={folder / 'adapters/clinical'}"]
    found = predicted(folder, tmp_path / "p", *keys)
    wanted = pl.read_parquet(run / "predictions" / "held_out.parquet")[SCORE]
    assert wanted.n_unique() > 5
    assert (found - wanted).abs().max() < 1e-6


def test_peft_alone_loads_the_adapter(pushed: Path, base: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = plain(input_ids=ids).logits.clone()
        adapted = PeftModel.from_pretrained(plain, str(pushed), subfolder="adapters/downstream")
        assert (adapted(input_ids=ids).logits - before).abs().max() > 1e-4


def test_a_fused_adapter_goes_in_place_of_the_two(run: Path, dataset: Path, base: Path, tmp_path: Path) -> None:
    own = ["--config_filepath", str(run / "config.yaml")]
    assert main(["fuse", *own, "fuse.mode=cat"]) == 0
    folder = tmp_path / "upload"
    assert main(["push", str(run), "--fused", "cat", *LICENSE, "--repo_id", "me/m", "--to_folder", str(folder)]) == 0
    fused = {f"fused/cat/{file}" for file in ("fuse.json", "narrative.json", "score.safetensors", *NARRATOR)}
    assert set(content(folder)) == fused | {f"fused/cat/fused/{file}" for file in ADAPTER} | RECORD
    keys = [*data_keys(dataset), f"model.model_name={base}", f"model.fused={folder / 'fused/cat'}"]
    found = predicted(folder, tmp_path / "p", *keys, f"model.clinical_adapter={folder / 'fused/cat/fused'}")
    wanted = pl.read_parquet(run / "predictions" / "held_out.parquet")[SCORE]
    assert (found - wanted).abs().max() < 1e-5
    assert main(["push", str(run), "--fused", "ties", *LICENSE, "--repo_id", "me/m", "--to_folder", str(tmp_path)]) == 2


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder of some thousand untrained weights, saved as a hub model would be."""
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    tokenizer = train_wordpiece(["63-year-old woman. 2 years before: Asthma; Creatinine 0.9 mg/dL"])
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    new_bert(tokenizer, 0, **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CODES = {"model/tokenizer/tokenizer.json", "model/tokenizer/vocabulary.json", "model/config.json"}
NARROW = ["num_hidden_layers=1", "num_attention_heads=2", "hidden_size=16", "intermediate_size=32", "embedding_size=16"]
EVENTS = ["encoder.width=16", "encoder.layers=1", "encoder.heads=2", "encoder.max_events=24"]
SHAPES = {
    "structured": ["structured.architecture=lstm", *(f"structured.{k}" for k in ("size=demo", "context=64"))],
    "behrt": [f"behrt.{key}" for key in (*NARROW, "max_length=32")],
    "event_encoder": EVENTS,
    "encoder": [],
}
FILES = {
    "structured": {*CODES, "model/model.safetensors"},
    "behrt": {*CODES, "model/model.safetensors"},
    "event_encoder": {"model/events.safetensors", "model/narrative.json", *(f"model/{file}" for file in NARRATOR)}
    | {"model/numbers.json"},
    "encoder": {"adapters/narrative.json", "adapters/head.safetensors", *(f"adapters/{file}" for file in NARRATOR)}
    | {f"adapters/encoder/{file}" for file in ("config.json", "model.safetensors", "tokenizer.json")}
    | {"adapters/encoder/tokenizer_config.json"},
}
SHOWN = {
    "structured": "the tokenizer names codes",
    "behrt": "the tokenizer names codes",
    "event_encoder": "the scales of measured numbers",
    "encoder": None,
}
"""What is said of each kind's vocabulary; a code book can be cut, and nothing need be said."""


@pytest.mark.parametrize("arm", SHAPES)
def test_a_model_of_any_arm_works_where_it_is_taken_and_says_what_it_shows(
    arm: str, dataset: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = tmp_path / "run", tmp_path / "upload"
    based = [f"model.model_name={bert}", "model.max_length=128"] if "encoder" in arm else []
    keys = [f"arm={arm}", "stage=classify", *SHAPES[arm], *based, *data_keys(dataset), *SMALL]
    assert main(["train", *keys, f"training.output_dir={folder}"]) == 0
    command = ["push", str(folder), "--repo_id", "me/m", "--to_folder", str(target)]
    capsys.readouterr()
    assert main([*command, "--with_vocabulary"]) == 2
    assert "is not known" in capsys.readouterr().err
    if SHOWN[arm] is not None:
        assert main([*command, *LICENSE]) == 2
        assert SHOWN[arm] in capsys.readouterr().err
    assert not target.exists()
    assert main([*command, *LICENSE, "--with_vocabulary"]) == 0
    assert set(content(target)) == FILES[arm] | RECORD
    everything = b"\n".join(content(target).values())
    assert str(FIRST_SUBJECT)[:7].encode() not in everything
    assert str(tmp_path.parent).encode() not in everything
    found = predicted(target, tmp_path / "p", *data_keys(dataset), *based[:1])
    wanted = pl.read_parquet(folder / "predictions" / "held_out.parquet")[SCORE]
    assert (found - wanted).abs().max() < 1e-6


def test_a_head_over_a_pretrained_model_of_events_predicts_as_its_card_says(
    dataset: Path, bert: Path, tmp_path: Path
) -> None:
    folder, target = tmp_path / "run", tmp_path / "upload"
    keys = ["arm=event_encoder", f"model.model_name={bert}", *EVENTS, *data_keys(dataset), *SMALL]
    assert main(["train", *keys, "stage=pretrain", f"training.output_dir={tmp_path / 'events'}"]) == 0
    head = ["stage=classify", "encoder.finetune=head", f"encoder.pretrained={tmp_path / 'events'}"]
    assert main(["train", *keys, *head, f"training.output_dir={folder}"]) == 0
    command = ["push", str(folder), "--repo_id", "me/m", "--to_folder", str(target), *LICENSE, "--with_vocabulary"]
    assert main(command) == 0
    assert "encoder.pretrained=" in (target / "README.md").read_text()
    based = [f"model.model_name={bert}", f"encoder.pretrained={target}"]
    found = predicted(target, tmp_path / "p", *data_keys(dataset), *based)
    wanted = pl.read_parquet(folder / "predictions" / "held_out.parquet")[SCORE]
    assert (found - wanted).abs().max() < 1e-6


class Hub:
    """A hub that remembers what it was asked."""

    there: SimpleNamespace | None = None
    asked: list[tuple[str, dict[str, Any]]]
    token: str

    def __init__(self, token: str):
        Hub.token, Hub.asked = token, []

    def create_repo(self, repo_id: str, **options: Any) -> str:
        Hub.asked.append(("create", {"repo_id": repo_id, **options}))
        return f"https://hub/{repo_id}"

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return Hub.there or SimpleNamespace(private=dict(Hub.asked)["create"]["private"])

    def create_branch(self, repo_id: str, **options: Any) -> None:
        Hub.asked.append(("branch", options))

    def upload_folder(self, **options: Any) -> None:
        Hub.asked.append(("upload", {**options, "files": content(Path(options["folder_path"]))}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "there", None)
    monkeypatch.setenv("HF_UPLOAD_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_USERNAME", "someone")
    Hub.asked = []
    return Hub


def test_an_upload_is_private_and_one_commit_of_what_to_folder_writes(
    hub: type[Hub], run: Path, pushed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "--repo_id", "someone/model", *LICENSE]) == 0
    assert hub.token == "hf_secret"
    (create, made), (upload, sent) = hub.asked
    assert (create, upload) == ("create", "upload")
    assert made == {"repo_id": "someone/model", "repo_type": "model", "private": True, "exist_ok": True}
    assert (sent["repo_id"], sent["revision"]) == ("someone/model", None)
    assert sent["files"] == content(pushed)
    said = "".join(capfd.readouterr())
    assert "hf_secret" not in said
    assert "(private)" in said


def test_a_name_a_branch_and_the_public_are_asked_for(
    hub: type[Hub], run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), *LICENSE, "--public", "--revision", "v2"]) == 0
    assert "(public)" in "".join(capfd.readouterr())
    (_, made), (_, branch), (_, sent) = hub.asked
    assert (made["repo_id"], made["private"], branch["branch"], sent["revision"]) == ("someone/run", False, "v2", "v2")


def test_a_repository_that_is_there_stays_as_it_is_and_is_called_so(
    hub: type[Hub], run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.there = SimpleNamespace(private=True)
    assert main(["push", str(run), *LICENSE, "--public"]) == 0
    assert "(private)" in "".join(capfd.readouterr())


def test_a_repository_that_is_public_already_takes_nothing_unasked(hub: type[Hub], run: Path) -> None:
    hub.there = SimpleNamespace(private=False)
    assert main(["push", str(run), *LICENSE]) == 2
    assert [what for what, _ in hub.asked] == ["create"]


def test_a_refusal_of_the_hub_is_told_without_the_token(
    hub: type[Hub], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no rights for hf_secret\nRequest ID: 1")

    monkeypatch.setattr(hub, "create_repo", refuse)
    assert main(["push", str(run), *LICENSE]) == 2
    said = capsys.readouterr().err
    assert "no rights for ***" in said
    assert "hf_secret" not in said


@pytest.mark.parametrize(
    ("name", "said"), [("HF_UPLOAD_TOKEN", "HF_UPLOAD_TOKEN is not set"), ("HF_USERNAME", "give --repo_id owner/name")]
)
def test_without_a_token_or_a_name_nothing_is_asked_of_the_hub(
    name: str, said: str, hub: type[Hub], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "")
    assert main(["push", str(run), *LICENSE]) == 2
    assert said in capsys.readouterr().err
    assert hub.asked == []


def test_runs_that_cannot_go_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], hub: type[Hub]
) -> None:
    begun = open_run(tmp_path / "begun", {}).path
    filled = tmp_path / "filled"
    filled.mkdir()
    (filled / "x").touch()
    for arguments, said in (
        ([str(begun)], "holds no finished run"),
        ([str(finished), *LICENSE], "thresholds are values of single patients"),
        ([str(finished), "--repo_id", "a/b/c"], "give --repo_id owner/name"),
        ([str(finished), "--to_folder", str(filled)], "already holds something"),
        ([str(finished), "--publik"], "is no argument"),
    ):
        assert main(["push", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("base", "licence"),
    [
        ("meta-llama/Llama-3.1-8B", "llama3.1"),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "llama3.2"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("meta-llama/Llama-2-7b-hf", "llama2"),
        ("mistralai/Mistral-7B-v0.3", "apache-2.0"),
        ("microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", "mit"),
    ],
)
def test_the_licence_is_that_of_the_base(base: str, licence: str) -> None:
    config = {"arm": "llm", "model": {"model_name": base}}
    assert licence_of(config, None) == licence
    assert licence_of(config, "other") == "other"


def test_an_unknown_licence_is_asked_for_and_a_model_without_base_has_none() -> None:
    for config in (
        {"arm": "llm", "model": {"model_name": "someone/new"}},
        {"arm": "behrt", "model": {"model_name": "meta-llama/Llama-3.1-8B"}},
    ):
        with pytest.raises(InputError, match="is not known"):
            licence_of(config, None)


def test_only_what_is_named_is_allowed(tmp_path: Path) -> None:
    room = tmp_path / "adapters"
    names = ["narrative.json", "downstream/adapter_model.safetensors", "downstream/optimizer.pt", "predictions.parquet"]
    names += ["downstream/README.md", "narrator/words.csv", "clinical/narrator/book.parquet", "x/adapter_config.json"]
    for name in names:
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        (room / name).touch()
    (room / "score.safetensors").symlink_to(room / "predictions.parquet")
    found = [file.relative_to(room).as_posix() for file in allowed_files(room)]
    assert found == ["clinical/narrator/book.parquet", "downstream/adapter_model.safetensors", "narrative.json"]


def test_paths_lose_all_but_their_name_and_words_stay(tmp_path: Path) -> None:
    told = {"base": f"{tmp_path}/llama/", "hub": "meta-llama/Llama-3.1-8B", "prompt": "/x", "n": [1, "~/a/b", None]}
    assert without_paths(told) == {
        "base": "llama",
        "hub": "meta-llama/Llama-3.1-8B",
        "prompt": "/x",
        "n": [1, "b", None],
    }
    assert not is_path("120/80 mmHg")

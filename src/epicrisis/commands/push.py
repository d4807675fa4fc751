"""`epicrisis push`: a run's adapter or model goes to the Hugging Face Hub, with a card made from its record."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from epicrisis.commands.compare import refuse_unknown
from epicrisis.commands.hub_files import Upload, config_of, gather, refuse_filled
from epicrisis.commands.model_card import licence_of, model_card
from epicrisis.settings import refuse
from epicrisis.settings.keys import key, without_keys
from epicrisis.tracking.progress import say
from epicrisis.tracking.run_directory import RunDirectory


def parser() -> argparse.ArgumentParser:
    """The command's own arguments."""
    described = argparse.ArgumentParser(
        prog="epicrisis push",
        description="Upload a finished run's adapter or model, with a card; nothing of a patient.",
    )
    described.add_argument("run", type=Path, metavar="RUN", help="a finished run's directory")
    described.add_argument("--repo_id", help="owner/name on the hub; by default HF_USERNAME and the run's name")
    described.add_argument("--fused", metavar="MODE", help="the adapter that `fuse` made (stack, cat, merge16, …)")
    described.add_argument("--public", action="store_true", help="make the repository public; private where not given")
    described.add_argument("--revision", help="a branch of the repository, made where there is none")
    described.add_argument("--license", help="as the hub calls it; that of the base where not given")
    described.add_argument(
        "--with_vocabulary", action="store_true", help="with codes and texts that fewer than 10 train subjects have"
    )
    described.add_argument("--to_folder", type=Path, help="write there what would be uploaded, and upload nothing")
    return described


def run(given: argparse.Namespace, overrides: list[str]) -> None:
    """Gather what may leave the run, write its card, and upload both in one commit, or into a folder.

    Raises InputError for a run that is not finished or has no model to share, for a missing token or name, and where
    the hub refuses.
    """
    refuse_unknown(overrides)
    directory = RunDirectory(given.run)
    repo_id = _repo_id(given, directory)
    if given.to_folder is not None:
        refuse_filled(given.to_folder, "--to_folder")
        upload = write_upload(directory, given.to_folder, repo_id, given)
        say(f"{_counted(upload)} in {given.to_folder}: what would go to {repo_id}")
        return
    token = _token()
    with tempfile.TemporaryDirectory() as place:
        upload = write_upload(directory, Path(place) / "upload", repo_id, given)
        url = _push(upload.folder, repo_id, token, public=given.public, revision=given.revision)
        say(f"{_counted(upload)} pushed to {url}")


def write_upload(directory: RunDirectory, folder: Path, repo_id: str, given: argparse.Namespace) -> Upload:
    """Exactly what is uploaded, card included."""
    config = config_of(directory)
    licence = licence_of(config, given.license)
    upload = gather(directory, config, folder, fused=given.fused, with_vocabulary=given.with_vocabulary)
    card = model_card(directory, upload, repo_id, licence, given.fused)
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    if given.with_vocabulary:
        say("codes and texts that few train subjects have are among the files: look through them before you share")
    elif upload.n_codes_left_out:
        say(f"{upload.n_codes_left_out} codes of few or no train subjects are left out of the code book")
    return upload


def _push(folder: Path, repo_id: str, token: str, *, public: bool, revision: str | None) -> str:
    """Upload the folder in one commit; gives the repository's address, and whether all may read it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, repo_type="model", private=not public, exist_ok=True)
        private = api.model_info(repo_id).private  # of one that was there, as it was
        if not public and not private:
            what = f"{repo_id} is there already, and public"
            raise refuse("--repo_id", what, "give --public to upload to it all the same, or another --repo_id")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        message = "Upload by epicrisis push"
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision)
    except (HfHubHTTPError, OSError) as error:
        reason = without_keys(str(error).strip().partition("\n")[0]) or type(error).__name__
        raise refuse(
            "--repo_id", f"the hub refused {repo_id} ({reason})", "mend the token's rights or the name"
        ) from None
    return f"{url} ({'private' if private else 'public'})"


def _repo_id(given: argparse.Namespace, directory: RunDirectory) -> str:
    """owner/name; without an owner where nothing is uploaded and none is known."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, owner = given.repo_id, key("HF_USERNAME")
    if name is None:
        name = f"{owner}/{directory.path.resolve().name}" if owner else directory.path.resolve().name
    if "/" not in name and given.to_folder is None:
        raise refuse(
            "--repo_id", "whose repository it is is not known", "give --repo_id owner/name, or set HF_USERNAME"
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise refuse("--repo_id", str(error).partition("\n")[0], "give --repo_id owner/name") from None
    return name


def _token() -> str:
    token = key("HF_UPLOAD_TOKEN")
    if not token:
        what = "HF_UPLOAD_TOKEN is not set"
        fix = "put it into env/.env or the environment (a token with write access), or give --to_folder"
        raise refuse("HF_UPLOAD_TOKEN", what, fix)
    return token


def _counted(upload: Upload) -> str:
    files: list[Any] = [file for file in upload.folder.rglob("*") if file.is_file()]
    return f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"

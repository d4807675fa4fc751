"""`epicrisis synthesize`: a synthetic MEDS cohort with labels and true risks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epicrisis.events.synthetic import synthesize
from epicrisis.settings import load_settings, refuse
from epicrisis.tracking.progress import bar, say


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Write the cohort that the section `synthetic` describes."""
    synthetic = load_settings(config_filepath, overrides, check_files=False).synthetic
    if synthetic.output_dir is None:
        raise refuse("synthetic.output_dir", "is not given", "name the folder to write")
    with bar("synthesize", synthetic.n_subjects) as progress:
        synthesize(
            synthetic.output_dir,
            synthetic.n_subjects,
            synthetic.seed,
            mean_visits=synthetic.mean_visits,
            shard_size=synthetic.shard_size,
            novel_code_probability=synthetic.novel_code_probability,
            progress=progress.advance,
        )
    say(f"wrote {synthetic.n_subjects} synthetic subjects, their labels and true risks to {synthetic.output_dir}")

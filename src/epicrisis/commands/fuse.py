"""`epicrisis fuse`: adapters become a stack, one adapter, or merged weights, with a parity figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epicrisis.commands.processes import processes
from epicrisis.settings import Settings, load_settings, refuse
from epicrisis.tracking.progress import say
from epicrisis.tracking.run_directory import RunDirectory


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Fuse the adapters of the run in training.output_dir, or those that fuse.adapters names."""
    settings = load_settings(config_filepath, overrides)
    if processes().num_processes > 1:
        raise refuse("accelerate launch", "fusing is the work of one process", "run it without accelerate launch")
    sources, beside = _sources(settings)
    output = _output(settings)
    from epicrisis.llm.fuse import fuse
    from epicrisis.training.device import make_accelerator

    told = fuse(settings, sources, output, make_accelerator(settings.training), beside)
    parity = told["parity"]
    say(
        f"{told['mode']} of {len(sources)} adapters in {output}: {told['note']}; logits differ from the stack's by "
        f"{parity['max_abs_difference']:.2e} at most, {parity['share_of_effect']:.2%} of what the adapters do"
    )


def _sources(settings: Settings) -> tuple[dict[str, Path], Path | None]:
    """The adapters by name, and the folder of what goes with them."""
    from epicrisis.llm.adapters import adapter_directory, adapters_in

    if settings.fuse.adapters:
        places = [adapter_directory(path, "fuse.adapters") for path in settings.fuse.adapters]
        return {f"adapter_{number}": place for number, place in enumerate(places, start=1)}, None
    directory = RunDirectory(settings.training.output_dir)
    if not directory.finished:
        raise refuse("training.output_dir", f"{directory.dir} holds no finished run", "train it, or give fuse.adapters")
    folder = directory.dir / "adapters"
    return {name: folder / name for name in adapters_in(folder)}, folder


def _output(settings: Settings) -> Path:
    default = settings.training.output_dir / "fused" / settings.fuse.mode.replace(":", "-")
    output = settings.fuse.output_dir or default
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise refuse("fuse.output_dir", f"{output} already holds something", "name a new or empty folder")
    return output

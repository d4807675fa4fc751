"""The search without a server: trials as processes, their values in a study, each in a folder of its own."""

from __future__ import annotations

import fcntl
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.markup import escape

from epicrisis.settings.problems import InputError, refuse
from epicrisis.tracking.progress import duration, say
from epicrisis.tracking.run_directory import RunDirectory, replacing
from epicrisis.tracking.stop_request import StopRequest, stop_request
from epicrisis.tracking.sweeps.command_line import cores, trial_command, trial_environment
from epicrisis.tracking.sweeps.distributions import text_of
from epicrisis.tracking.sweeps.study import SamplerName, ask, ask_again, begun
from epicrisis.tracking.sweeps.sweep_file import Sweep
from epicrisis.tracking.sweeps.trial_metrics import logged_values, value_of
from epicrisis.tracking.sweeps.trial_process import LOG, TrialProcess, end_orphans, last_words

STUDY = "study.db"
ABOUT = "sweep.json"
POLL_SECONDS = 0.25
FAILURES_AT_FIRST = 3
"""When so many trials have failed and none has done anything else, something is wrong with all of them."""


@dataclass(frozen=True)
class Plan:
    """How a sweep is searched. overrides: of every trial, `key=value`; default: see `study.ask`.

    devices: GPUs that trials get one each of. count: trials wanted in all, those that have ended already included.
    """

    output_dir: Path
    count: int
    jobs: int = 1
    sampler: SamplerName = "tpe"
    seed: int = 0
    overrides: Sequence[str] = ()
    default: Mapping[str, Any] | None = None
    base: Mapping[str, Any] = field(default_factory=dict)
    devices: Sequence[str] = ()

    def folder(self, number: int) -> Path:
        return self.output_dir / f"trial-{number:04d}"


@contextmanager
def only_search(output_dir: Path) -> Iterator[None]:
    """Hold the sweep's folder for this process; InputError where another one holds it.

    The lock is the system's, so that it does not outlive a process that was killed.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(output_dir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "wait for it, or name another folder; --jobs runs trials together"
            raise refuse("--output_dir", f"another process searches in {output_dir}", fix) from None
        yield


def search(sweep: Sweep, plan: Plan, study: optuna.Study, each: Callable[[optuna.Study], object]) -> None:
    """Run what is missing of the sweep's trials. each: called whenever a trial has ended.

    A trial that a search which died left behind goes first, with its number, folder and values: if its run has
    finished meanwhile it is only told, else its run is resumed. Raises InputError where all of the first trials fail,
    and SystemExit (130 or 143) when it is asked to stop; its trials are then asked to save their state, and go on with
    the next search.
    """
    with stop_request() as request:
        _Search(sweep, plan, study, each, request).run()


@dataclass
class _Running:
    """A trial at work. reported: evaluations that the pruner knows of. slot: its place among `jobs`."""

    trial: optuna.Trial
    process: TrialProcess
    slot: int
    reported: int
    pruned: bool = False


class _Search:
    """The loop over trials, and those that are running."""

    def __init__(
        self,
        sweep: Sweep,
        plan: Plan,
        study: optuna.Study,
        each: Callable[[optuna.Study], object],
        request: StopRequest,
    ):
        self.sweep, self.plan, self.study, self.each, self.request = sweep, plan, study, each, request
        there = begun(study)
        self.left = [trial for trial in there if trial.state == TrialState.RUNNING]
        self.running: list[_Running] = []
        self.n_failed, self.n_others = 0, sum(trial.state == TrialState.COMPLETE for trial in there)
        if there:
            _say(f"going on: {len(there) - len(self.left)} trials have ended, {len(self.left)} were cut off")

    def run(self) -> None:
        try:
            while self._fill() or self.running:
                time.sleep(POLL_SECONDS)
                for one in [one for one in self.running if self._has_ended(one)]:
                    self.running.remove(one)
                    self._end(one)
                if self.request.signal is not None:
                    self._leave(signal.Signals[self.request.signal])
                if self.n_failed >= FAILURES_AT_FIRST and not self.n_others:
                    raise self._hopeless()
        finally:  # nobody watches them any more
            for one in self.running:
                one.process.kill()

    def _fill(self) -> bool:
        """Begin trials while there is room for them; whether there was any to begin."""
        found, how = False, (self.study, self.sweep, self.plan.sampler, self.plan.seed)
        while len(self.running) < self.plan.jobs:
            if self.left:
                trial, values = ask_again(*how, self.left.pop(0))
            elif len(begun(self.study)) < self.plan.count:
                trial, values = ask(*how, self.plan.default)
            else:
                break
            self._begin(trial, values)
            found = True
        return found

    def _begin(self, trial: optuna.Trial, values: Mapping[str, Any]) -> None:
        folder = self.plan.folder(trial.number)
        run, again = RunDirectory(folder), folder.is_dir()
        if again and end_orphans(folder):
            _say(f"trial {trial.number}: its process, which outlived the search, is ended")
        if run.finished:
            self._settle(trial, folder, _Outcome(code=0))
            return
        placed = [f"--training.output_dir={folder}"]
        if run.config.is_file():
            placed += ["--training.resume=true", "--training.overwrite_output_dir=false"]
        command = [*trial_command(self.sweep, self._arguments(values)), *placed]
        slot = min(set(range(self.plan.jobs)) - {one.slot for one in self.running})
        device = self.plan.devices[slot % len(self.plan.devices)] if self.plan.devices else None
        process = TrialProcess(command, folder, trial_environment(folder, device), cores(slot, self.plan.jobs))
        reported = len(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self.running.append(_Running(trial, process, slot, reported))
        shown = ", ".join(f"{key} {_short(value)}" for key, value in values.items())
        _say(f"trial {trial.number} (of {self.plan.count}) {'goes on' if again else 'begins'}: {shown}")

    def _arguments(self, values: Mapping[str, Any]) -> list[str]:
        """The trial's values, and what is the same in all trials; overrides go before what the file fixes."""
        overridden = {_key(override) for override in self.plan.overrides}
        own = [word for word in self.sweep.arguments(values) if _key(word) not in overridden]
        return [*own, *(f"--{override.removeprefix('--')}" for override in self.plan.overrides)]

    def _has_ended(self, one: _Running) -> bool:
        if one.process.exit_code is not None:
            return True
        if self.sweep.early_terminate is not None and not one.pruned:
            self._report(one)
        return False

    def _report(self, one: _Running) -> None:
        """Tell the pruner of new evaluations, and stop the trial where it says so."""
        values = list(logged_values(one.process.folder, self.sweep.metric).values())
        for number in range(one.reported + 1, len(values) + 1):
            one.trial.report(values[number - 1], number)
            one.reported = number
            if one.trial.should_prune():
                one.pruned = True
                one.process.stop()
                return

    def _end(self, one: _Running) -> None:
        if one.pruned:  # its launcher may be gone before its processes have saved their state
            end_orphans(one.process.folder)
        outcome = _Outcome(one.process.exit_code or 0, one.process.seconds, one.reported if one.pruned else None)
        self._settle(one.trial, one.process.folder, outcome)

    def _settle(self, trial: optuna.Trial, folder: Path, outcome: _Outcome) -> None:
        """Tell the study how a trial ended."""
        run, number = RunDirectory(folder), trial.number
        pruned = outcome.pruned_after is not None and not run.finished
        value = value_of(folder, self.sweep.metric, self.sweep.goal)
        failure = None if pruned else _failure(outcome.code, run)
        if failure is None and value is None:
            failure = f"no finite {self.sweep.metric} was logged"
        spent = trial.user_attrs.get("seconds", 0.0) + outcome.seconds
        trial.set_user_attr("seconds", round(spent, 1))
        if failure is not None:
            trial.set_user_attr("reason", failure)
            self.study.tell(number, state=TrialState.FAIL)
            self.n_failed += 1
            _say(f"trial {number} failed: {failure}")
        elif pruned:
            trial.set_user_attr("value", value)
            self.study.tell(number, state=TrialState.PRUNED)
            self.n_others += 1
            told = f"{self.sweep.metric} {value:.4f} after {outcome.pruned_after} evaluations"
            _say(f"trial {number} is given up: {told}")
        else:
            self.study.tell(number, value)
            self.n_others += 1
            best = self.study.best_trial
            told = f"{self.sweep.metric} {value:.4f} in {duration(spent)}"
            _say(f"trial {number}: {told} (best: {best.value:.4f}, trial {best.number})")
        self.each(self.study)

    def _leave(self, asked_by: signal.Signals) -> None:
        """Have the running trials save their state; they stay unfinished in the study, to go on."""
        _say("stopping: the trials that run save their state; Ctrl-C again ends them at once")
        for one in self.running:
            one.process.stop()
        while any(one.process.exit_code is None for one in self.running):
            time.sleep(POLL_SECONDS)
        for one in self.running:
            end_orphans(one.process.folder)
            earlier = one.trial.user_attrs.get("seconds", 0.0)
            one.trial.set_user_attr("seconds", round(earlier + one.process.seconds, 1))
        self.running.clear()
        _say("stopped. To go on: the same command")
        raise SystemExit(128 + asked_by)

    def _hopeless(self) -> InputError:
        failed = [trial for trial in begun(self.study) if trial.state == TrialState.FAIL]
        reason, folder = failed[-1].user_attrs["reason"], self.plan.folder(failed[-1].number)
        what = f"the first {self.n_failed} trials all failed, the last with {reason}"
        return refuse("trials", what, f"see {folder / LOG}; then begin in another --output_dir")


@dataclass(frozen=True)
class _Outcome:
    """How a trial's process ended. pruned_after: evaluations after which it was given up, where it was."""

    code: int
    seconds: float = 0.0
    pruned_after: int | None = None


def _failure(code: int | None, run: RunDirectory) -> str | None:
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        return f"{how}: {last_words(run.dir)}"
    return None if run.finished else "it ended before its run was finished"


def _key(word: str) -> str:
    return word.removeprefix("--").partition("=")[0]


def _say(text: str) -> None:
    say(escape(text))  # lists are no markup


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else text_of(value)


def definition(sweep: Sweep, plan: Plan) -> dict[str, Any]:
    """All that makes trials comparable, and values of the same parameters the same."""
    return {
        "method": sweep.method,
        "metric": {"name": sweep.metric, "goal": sweep.goal},
        "space": {key: str(own) for key, own in sweep.space.items()},
        "fixed": dict(sweep.fixed),
        "program": sweep.program,
        "command": list(sweep.command),
        "overrides": sorted(plan.overrides),
        "config": dict(plan.base),
        "seed": plan.seed,
        "sampler": plan.sampler,
    }


def refuse_another(sweep: Sweep, plan: Plan) -> None:
    """Raise InputError where the folder holds trials of another sweep; else leave in sweep.json what this one is."""
    file, now = plan.output_dir / ABOUT, json.loads(json.dumps(definition(sweep, plan)))
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            what = f"{plan.output_dir} holds trials of another sweep: {', '.join(changed)} differs"
            raise refuse("--output_dir", what, "name another folder, or go on with what its sweep.json says")
        return
    with replacing(file) as part:
        part.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")

"""Searches in a process of its own, which can be killed: `search_run.py SWEEP OUTPUT_DIR COUNT JOBS [key=value …]`."""

from __future__ import annotations

import sys
from pathlib import Path

from epicrisis.tracking.sweeps.ranking import write_report, write_table
from epicrisis.tracking.sweeps.search import STUDY, Plan, only_search, search
from epicrisis.tracking.sweeps.study import open_study, quiet_optuna
from epicrisis.tracking.sweeps.sweep_file import read_sweep

if __name__ == "__main__":
    sweep = read_sweep(Path(sys.argv[1]))
    plan = Plan(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), overrides=tuple(sys.argv[5:]))
    with only_search(plan.output_dir), quiet_optuna():
        study = open_study(sweep, plan.output_dir / STUDY)
        search(sweep, plan, study, lambda study: write_table(study, sweep, plan))
        write_report(study, sweep, plan, [])

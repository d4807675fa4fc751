"""A trial that learns nothing: it logs evaluations by its learning rate, as slowly as asked, and can go on.

Its overrides: training.learning_rate, training.output_dir, training.resume, and of its own `steps`, `pause` (seconds
before each evaluation), `fail` (exit code, told on stderr) and `diverge`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder, rate = Path(given["training.output_dir"]), float(given.get("training.learning_rate", 0))
metrics = folder / "metrics.jsonl"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

if given.get("fail"):
    print("the disk is on fire", file=sys.stderr)
    sys.exit(int(given["fail"]))
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text(f"training: {{learning_rate: {rate}, output_dir: {folder}, resume: true}}\n")
with open(folder / "begun.txt", "a") as begun:
    begun.write(given.get("training.resume", "false") + "\n")
steps = int(given.get("steps", 3))
done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
for step in range(done + 1, steps + 1):
    time.sleep(float(given.get("pause", 0)))
    value = "NaN" if given.get("diverge") else rate * step / steps
    with open(metrics, "a") as log:
        log.write(json.dumps({"step": 10 * step, "eval/auroc": value}) + "\n")
(folder / "summary.json").write_text("{}")

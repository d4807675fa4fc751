#!/usr/bin/env bash
# The whole road on 2,000 synthetic patients: events → narratives → QLoRA pretraining → fusion → one table.
# EPICRISIS_CACHE keeps the embedded base between runs; everything else is written to runs/demo.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf runs/demo
epicrisis synthesize --config_filepath configs/demo/synthesize.yaml
accelerate launch scripts/train.py --config_filepath configs/demo/pretrain.yaml
accelerate launch scripts/benchmark.py --config_filepath configs/demo/benchmark.yaml

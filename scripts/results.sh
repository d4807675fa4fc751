#!/usr/bin/env bash
# The tables of docs/results.md: all arms on the open MIMIC-IV demo and the GI-bleed cohort, into runs/.
# DATA is the folder that holds both (default ../shared/data).
set -euo pipefail
cd "$(dirname "$0")/.."
DATA="${DATA:-../shared/data}"

benchmark() {  # benchmark CONFIG_FOLDER DATA_FOLDER TASK CONFIG
    epicrisis benchmark --config_filepath "configs/$1/$4.yaml" \
        "data.meds_dir=$DATA/$2" "data.labels_dir=$DATA/$2/labels/$3"
}

pretrain() {  # pretrain CONFIG_FOLDER DATA_FOLDER TASK
    epicrisis train --config_filepath "configs/$1/pretrain.yaml" \
        "data.meds_dir=$DATA/$2" "data.labels_dir=$DATA/$2/labels/$3" training.overwrite_output_dir=true
}

pretrain gibleed gibleed gi_bleed
benchmark gibleed gibleed gi_bleed benchmark
pretrain mimic_iv_demo mimic_iv_demo in_hospital_mortality
for task in in_hospital_mortality los_gt_7d readmission_30d; do
    benchmark mimic_iv_demo mimic_iv_demo "$task" "$task"
done

#!/usr/bin/env bash
# The transfer-aware hyperparameter search: sets up what is missing, then runs it.
#   bash scripts/run_hparam_search.sh [--n_trials 50] [--timeout_hours 48] [--n_cv_folds 5] [--stage2_epochs 20]
#       [--study_name NAME] [--config FILE] [--resume PATH/study.db] [--set key.path=value] …   (--help lists all)
# Under `sh`, which is often no bash, what follows would fail.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
script=${BASH_SOURCE[0]}
# An older macOS has no readlink -f.
[ ! -L "$script" ] || script=$(readlink -f "$script" 2>/dev/null) || script=${BASH_SOURCE[0]}
# With an exported CDPATH cd would print the folder, or go to another one.
ROOT=$(CDPATH='' cd -- "$(dirname -- "$script")/.." && pwd)
source "$ROOT/scripts/environment.sh"

prepare_environment ""
config=(--config "$ROOT/configs/config_hparam_search.yaml")
for word in "$@"; do
    case $word in --config* | --resume* | --second[-_]pass*) config=() ;; esac
done
CHITRANSFER_LAUNCHER=$(printf 'bash %q' "$0")
export CHITRANSFER_LAUNCHER
# -P: the current folder may hold the checkout, whose name is the package's.
exec "$PYTHON" -P -m chitransfer search ${config[@]+"${config[@]}"} "$@"

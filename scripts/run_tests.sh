#!/usr/bin/env bash
# The tests: sets up what is missing, then runs them. Further words go to pytest; --all runs the slow ones too.
# Under `sh`, which is often no bash, what follows would fail.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
script=${BASH_SOURCE[0]}
# An older macOS has no readlink -f.
[ ! -L "$script" ] || script=$(readlink -f "$script" 2>/dev/null) || script=${BASH_SOURCE[0]}
# With an exported CDPATH cd would print the folder, or go to another one.
ROOT=$(CDPATH='' cd -- "$(dirname -- "$script")/.." && pwd)
source "$ROOT/scripts/environment.sh"

prepare_environment dev
chosen=(-m "not slow")
words=()
for word in "$@"; do
    if [ "$word" = --all ]; then chosen=(); else words+=("$word"); fi
done
cd "$ROOT"
# A process a core, each computing on one thread; a file's tests in one, which makes what they share once. Which files
# come first tests/conftest.py says.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder ${chosen[@]+"${chosen[@]}"} ${words[@]+"${words[@]}"}

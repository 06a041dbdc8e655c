#!/usr/bin/env bash
# The tests: sets up what is missing, then runs them. Further words go to pytest; --fast leaves out the slow ones.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/scripts/environment.sh"

prepare_environment "[dev]" pytest hypothesis pytest_timeout
words=()
for word in "$@"; do
    if [ "$word" = --fast ]; then words+=(-m "not slow"); else words+=("$word"); fi
done
cd "$ROOT"
exec "$PYTHON" -m pytest "${words[@]}"

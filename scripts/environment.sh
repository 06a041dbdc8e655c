# Sourced by the other scripts: leaves $PYTHON pointing at a Python that has chitransfer and the extras asked for.
# An active virtual environment that has them already is used as it is; otherwise .venv is made, once.

say() { printf '[chitransfer] %s\n' "$*"; }

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    say "Python 3.11 or newer is needed and was not found; install it and run this again." >&2
    exit 2
}

# prepare_environment EXTRAS MODULE…: EXTRAS like "" or "[dev]"; the modules that must then be importable.
prepare_environment() {
    local extras=$1 wanted stamp
    shift
    wanted=$(printf 'import %s\n' chitransfer "$@")
    if [ -n "${VIRTUAL_ENV:-}" ] && "$VIRTUAL_ENV/bin/python" -c "$wanted" 2>/dev/null; then
        PYTHON="$VIRTUAL_ENV/bin/python"
        say "using the active virtual environment $VIRTUAL_ENV"
        return
    fi
    PYTHON="$ROOT/.venv/bin/python"
    stamp="$ROOT/.venv/.installed$extras-$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum | cut -d' ' -f1)"
    if [ -e "$stamp" ]; then
        say "using $ROOT/.venv"
        return
    fi
    if [ ! -x "$PYTHON" ]; then
        say "making a virtual environment in $ROOT/.venv"
        "$(find_python)" -m venv "$ROOT/.venv"
    fi
    say "installing the pinned packages (a few minutes the first time)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --constraint "$ROOT/constraints.txt" \
        --editable "$ROOT$extras"
    rm -f "$ROOT"/.venv/.installed"$extras"-*
    touch "$stamp"
    say "installed"
}

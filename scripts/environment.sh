# Sourced by the other scripts: leaves $PYTHON pointing at a Python that has chitransfer and the extras asked for.
# An active virtual environment that has them already is used as it is, unless its chitransfer is that of another
# checkout; otherwise .venv is made, once.

say() { printf '[chitransfer] %s\n' "$*"; }

find_python() {
    local candidate newest
    # The pinned packages are built up to this version; for a later one, pip must build some of them itself.
    for newest in 14 99; do
        for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
            if command -v "$candidate" >/dev/null 2>&1 &&
                "$candidate" -c "import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; then
                [ "$newest" = 14 ] ||
                    say "$("$candidate" --version) is newer than 3.14; if the installation fails, install Python 3.14 and run this again" >&2
                printf '%s' "$candidate"
                return
            fi
        done
    done
    say "Python 3.11 or newer is needed and was not found; install it and run this again." >&2
    exit 2
}

# has_package PYTHON EXTRA: whether chitransfer and all it requires, with EXTRA if there is one, are installed there.
# -P: not from the current folder, where a checkout lies.
has_package() {
    "$1" -P -c '
import re
import sys
from importlib.metadata import distribution

wanted = [("chitransfer", {sys.argv[1]})]
for name, extras in wanted:
    for need in distribution(name).requires or []:
        extra = re.search(r"extra == .(\w+)", need)
        if name == "chitransfer" and (extra is None or extra[1] in extras):
            brackets = re.search(r"\[(.*?)\]", need)
            wanted.append((re.match(r"[\w.-]+", need)[0], set(brackets[1].split(",")) if brackets else set()))
' "$2" 2>/dev/null
}

# code_of PYTHON: the folder whose chitransfer that Python imports.
code_of() {
    "$1" -P -c '
from importlib.util import find_spec
from pathlib import Path

print(Path(find_spec("chitransfer").origin).parents[1])
' 2>/dev/null
}

# has_pip PYTHON: whether pip is there. Where making the environment was interrupted, ensurepip adds it.
has_pip() { "$1" -m pip --version || "$1" -m ensurepip; } >/dev/null 2>&1

# make_environment PYTHON FOLDER: a virtual environment with pip. Debian and Ubuntu have ensurepip, which venv needs, in a
# package of its own (python3-venv); without it, the pip of PYTHON installs one.
make_environment() {
    local said
    said=$("$1" -m venv --clear "$2" 2>&1) && return
    { "$1" -m venv --clear "$2" --without-pip && PIP_USER=0 "$1" -m pip --python "$2/bin/python" install --quiet pip; } >/dev/null 2>&1 || {
        say "no virtual environment could be made: $said" >&2
        exit 2
    }
}

# prepare_environment EXTRA: EXTRA like "" or "dev", of pyproject.toml. "dev" has all there is.
prepare_environment() {
    local extra=$1 own="$ROOT/.venv" sum stamp code folder python lazily=()
    # What this script made goes by its stamps, which tell an outdated one.
    if [ -n "${VIRTUAL_ENV:-}" ] && ! { [ "$VIRTUAL_ENV" -ef "$own" ] && compgen -G "$own/.installed-*" >/dev/null; } &&
        has_package "$VIRTUAL_ENV/bin/python" "$extra" && code=$(code_of "$VIRTUAL_ENV/bin/python"); then
        PYTHON="$VIRTUAL_ENV/bin/python"
        if [ "$code" -ef "$ROOT" ]; then
            say "using the active virtual environment $VIRTUAL_ENV"
            return
        fi
        # A search may run what is installed; the tests are those of this checkout's code.
        if [ -z "$extra" ] && [ "${code##*/}" = site-packages ]; then
            say "using the active virtual environment $VIRTUAL_ENV with the chitransfer installed in it, not that of $ROOT"
            return
        fi
        say "not using the active virtual environment $VIRTUAL_ENV: its chitransfer is that of $code, not of $ROOT"
    fi
    # What is on them, as after a cluster's `module load`, pip would take for installed, and the program would run it.
    unset PYTHONPATH PYTHONHOME
    PYTHON="$own/bin/python"
    sum=$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum | cut -d' ' -f1)
    stamp="$own/.installed-$extra-$sum"
    # Of a Python that was upgraded or taken away only a link that leads nowhere is left.
    is_installed() { [ -x "$PYTHON" ] && { [ -e "$stamp" ] || [ -e "$own/.installed-dev-$sum" ]; }; }
    if is_installed; then
        say "using $own"
        return
    fi
    # Of two first runs at once the second waits for the first, and finds all done.
    exec 9<"$ROOT"
    if command -v flock >/dev/null 2>&1 && ! flock -n 9 2>/dev/null; then
        say "waiting for another run that makes $own"
        flock 9 2>/dev/null || say "it cannot be waited for here"
        if is_installed; then
            exec 9<&-
            say "using $own"
            return
        fi
    fi
    # pip writes beside pyproject.toml, too.
    for folder in "$ROOT" "$own"; do
        if [ -e "$folder" ] && [ ! -w "$folder" ]; then
            say "$folder cannot be written, so nothing can be installed in $own;" \
                "activate a virtual environment that has chitransfer${extra:+[$extra]}, or work in a copy of $ROOT that can be written" >&2
            exit 2
        fi
    done
    if [ ! -x "$PYTHON" ] || ! has_pip "$PYTHON"; then
        # By itself, for its failure to end the script.
        python=$(find_python)
        say "making a virtual environment in $own"
        make_environment "$python" "$own"
    fi
    say "installing the pinned packages (a few minutes the first time)"
    # Compiling all that is installed takes as long as installing it; Python keeps what it compiles when it is used, unless
    # it is told not to.
    [ -n "${PYTHONDONTWRITEBYTECODE:-}" ] || lazily=(--no-compile)
    # pip refuses to install for the user, as pip.conf may want it, in a virtual environment. setuptools warns of every
    # editable installation, and a recent pip passes that on.
    PIP_USER=0 PYTHONWARNINGS=ignore::UserWarning "$PYTHON" -m pip install --quiet --disable-pip-version-check ${lazily[@]+"${lazily[@]}"} \
        --constraint "$ROOT/constraints.txt" --editable "$ROOT${extra:+[$extra]}"
    rm -f "$own"/.installed-"$extra"-*
    touch "$stamp"
    exec 9<&-
    say "installed"
}

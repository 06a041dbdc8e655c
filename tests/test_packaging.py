"""What the package imports is what pyproject.toml declares, and all of that is pinned."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

# Imported by a dependency on our behalf: CMA-ES by Optuna.
IMPORTED_BY_OTHERS = {"cmaes"}


def normalise(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared_names(requirements: list[str]) -> set[str]:
    """Names of requirements such as ``dask[distributed]>=2025.1``, extras of chitransfer itself left out."""
    names = {normalise(re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0]) for text in requirements}
    names |= {extra for text in requirements for extra in re.findall(r"^dask\[(\w+)\]", text)}
    return names - {"chitransfer"}


def imported_distributions(root: Path) -> set[str]:
    """Distributions that the top-level imports of a folder's modules come from."""
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                found.add(node.module.split(".")[0])
    known = packages_distributions()
    outside = found - set(sys.stdlib_module_names) - {"chitransfer"}
    return {normalise(known[name][0] if name in known else name) for name in outside}


def test_imports_are_declared_and_what_is_declared_is_imported(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = declared_names(project["dependencies"])
    optional = declared_names([one for name, extra in project["optional-dependencies"].items() for one in extra])
    imported = imported_distributions(project_root / "chitransfer")
    assert imported - needed - optional == set()
    assert needed - imported == IMPORTED_BY_OTHERS


def test_everything_that_gets_installed_is_pinned(project_root: Path) -> None:
    """Follows the requirements of what is installed here, without extras and conditions, from pyproject.toml on."""
    lines = (project_root / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {normalise(line.split("==")[0]) for line in lines}
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = declared_names(
        [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    )
    assert wanted <= pinned
    for name in sorted(declared_names(project["dependencies"])):
        wanted |= declared_names([text for text in requires(name) or [] if ";" not in text])
    assert wanted <= pinned


def test_what_lacks_an_extra_says_how_to_add_it(
    project_root: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    """No registry has the package, so ``pip install 'chitransfer[…]'`` finds nothing."""
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [path.read_text(encoding="utf-8") for path in (project_root / "chitransfer").rglob("*.py")]
    named = {extra for text in texts for extra in re.findall(r"say_install\('(\w+)'\)", text)}
    assert named == {"cluster", "dashboard", "postgresql"}
    assert named <= set(project["optional-dependencies"])
    assert not any("chitransfer[" in text for text in texts)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run_command("dashboard", "study")
    assert code == 2
    assert "install it in the checkout with `pip install -c constraints.txt -e '.[dashboard]'`" in err


def test_what_is_no_module_is_shipped_too(project_root: Path) -> None:
    """The built-in tables, the parts of the report's page, and that the package has types."""
    settings = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    package = project_root / "chitransfer"
    shipped = {
        path
        for pattern in settings["tool"]["setuptools"]["package-data"]["chitransfer"]
        for path in package.glob(pattern)
    }
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert files == shipped
    assert package / "py.typed" in shipped


def has_package(environment: Path, extra: str, project_root: Path) -> bool:
    """What ``scripts/environment.sh`` says of a virtual environment, asked in the checkout itself."""
    words = f'source scripts/environment.sh; has_package "{environment}/bin/python" "{extra}"'
    done = subprocess.run(["bash", "-c", words], cwd=project_root, check=False, timeout=60)
    return done.returncode == 0


@pytest.mark.parametrize("extra", ["", "dev"])
def test_the_scripts_use_an_active_environment_only_if_it_has_the_package(
    extra: str, project_root: Path, tmp_path: Path
) -> None:
    """In the checkout ``import chitransfer`` succeeds in any Python: the folder is there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True, timeout=60)
    assert not has_package(tmp_path / "empty", extra, project_root)
    assert has_package(Path(sys.prefix), extra, project_root)


def test_an_environment_that_lacks_a_requirement_has_not_the_package(project_root: Path, tmp_path: Path) -> None:
    environment = tmp_path / "older"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name, requirement in (("chitransfer", "Requires-Dist: numpy"), ("numpy", "Summary: arrays")):
        assert not has_package(environment, "", project_root)
        info = packages / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requirement}\n")
    assert has_package(environment, "", project_root)


STUB = """#!/bin/sh
# Stands for a Python: makes environments with a Python that has pip, and installs nothing.
echo "$(basename "$(dirname "$(dirname "$0")")") $* ${PYTHONPATH-} ${PYTHONHOME-} PIP_USER=${PIP_USER-}" >>"$STUB_LOG"
case "$*" in *venv*) mkdir -p "$4/bin" && rm -f "$4/bin/python" && cp "$0" "$4/bin/python" ;; esac
"""


@pytest.fixture
def checkout(project_root: Path, tmp_path: Path) -> dict[str, str]:
    """Variables with which the scripts in the folder ``checkout`` find a Python that installs nothing."""
    root = tmp_path / "checkout"
    (tmp_path / "stub" / "bin").mkdir(parents=True)
    shutil.copytree(project_root / "scripts", root / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text("")
    stub = tmp_path / "stub" / "bin" / "python3"
    stub.write_text(STUB)
    stub.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return environment | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "STUB_LOG": str(tmp_path / "log")}


@pytest.fixture
def prepare(checkout: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Calls `prepare_environment` in a checkout without packages; what it said, and what it had a Python do.

    It is called with the active environment, if any, and the extra.
    """

    def call(active: Path | None = None, extra: str = "") -> str:
        (tmp_path / "log").write_text("")
        words = f'set -euo pipefail; source "$ROOT/scripts/environment.sh"; prepare_environment "{extra}"'
        variables = (
            checkout | {"ROOT": str(tmp_path / "checkout")} | ({} if active is None else {"VIRTUAL_ENV": str(active)})
        )
        done = subprocess.run(
            ["bash", "-c", words], env=variables, timeout=60, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + (tmp_path / "log").read_text()

    return call


@pytest.mark.parametrize(
    ("code", "extra", "is_used"),
    [
        ("checkout", "", True),
        ("checkout", "dev", True),
        ("installed", "", True),
        ("installed", "dev", False),
        ("other", "", False),
        ("other", "dev", False),
    ],
)
def test_an_active_environment_with_the_code_of_another_checkout_is_not_used(
    prepare: Callable[..., str], tmp_path: Path, code: str, extra: str, is_used: bool
) -> None:
    """Configurations would be those of one checkout, the code that of another."""
    active = tmp_path / "active"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", active], check=True, timeout=60)
    (packages,) = active.glob("lib/python*/site-packages")
    (packages / "chitransfer-1.0.dist-info").mkdir()
    (packages / "chitransfer-1.0.dist-info" / "METADATA").write_text("Name: chitransfer\nVersion: 1.0\n")
    place = packages if code == "installed" else tmp_path / code
    (place / "chitransfer").mkdir(parents=True)
    (place / "chitransfer" / "__init__.py").touch()
    if code != "installed":
        (packages / "editable.pth").write_text(f"{place}\n")
    said = prepare(active, extra)
    assert ("making a virtual environment" in said) is not is_used
    assert (f"[chitransfer] using the active virtual environment {active}" in said) is is_used
    root = tmp_path / "checkout"
    if not is_used:
        assert f"not using the active virtual environment {active}: its chitransfer is that of {place}, not" in said
    assert (f"not that of {root}" in said) is (code == "installed" and is_used)


def test_an_environment_is_made_once(prepare: Callable[..., str]) -> None:
    first = prepare()
    assert "making a virtual environment" in first
    assert ".venv -m pip install" in first
    second = prepare()
    assert "[chitransfer] using" in second
    assert "-m" not in second


@pytest.mark.parametrize("finishes", [True, False])
def test_of_two_runs_that_make_it_at_once_one_waits_for_the_other(
    prepare: Callable[..., str], tmp_path: Path, finishes: bool
) -> None:
    """The other one is done when the lock is free, or was interrupted."""
    prepare()
    (stamp,) = (tmp_path / "checkout" / ".venv").glob(".installed-*")
    stamp.unlink()
    flock = tmp_path / "stub" / "bin" / "flock"
    flock.write_text(f'#!/bin/sh\n[ "$1" != -n ] || exit 1\n{f"touch {stamp}" if finishes else "exit 1"}\n')
    flock.chmod(0o755)
    said = prepare()
    assert "waiting for another run" in said
    assert (".venv -m pip install" in said) is not finishes
    assert ("[chitransfer] using" in said) is finishes
    assert stamp.exists()


def test_an_environment_whose_python_is_gone_is_made_again(prepare: Callable[..., str], tmp_path: Path) -> None:
    prepare()
    python = tmp_path / "checkout" / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(tmp_path / "python3.9")
    again = prepare()
    assert "making a virtual environment" in again
    assert "stub -m venv --clear" in again
    assert ".venv -m pip install" in again


@pytest.mark.parametrize("has_ensurepip", [False, True])
def test_an_environment_without_pip_gets_it_or_is_made_again(
    prepare: Callable[..., str], tmp_path: Path, has_ensurepip: bool
) -> None:
    """An interruption, or Debian's python3 without python3-venv, leaves such a one."""
    python = tmp_path / "checkout" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    refused = '*"pip --version"*' if has_ensurepip else "*pip*"
    python.write_text(STUB + f'case "$*" in {refused}) exit 1 ;; esac\n')
    python.chmod(0o755)
    said = prepare()
    assert ("stub -m venv --clear" in said) is not has_ensurepip
    assert ".venv -m pip install" in said


def test_the_launcher_runs_the_package_and_not_the_folder_it_is_called_in(project_root: Path, tmp_path: Path) -> None:
    """A checkout has the package's name, so it is what Python finds in the folder above it."""
    (tmp_path / "chitransfer").mkdir()
    (tmp_path / "chitransfer" / "__init__.py").write_text("raise SystemExit('another chitransfer')")
    launcher = project_root / "scripts" / "run_hparam_search.sh"
    done = subprocess.run(
        ["bash", launcher, "--help"], cwd=tmp_path, timeout=120,
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(project_root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--n-trials" in done.stdout


@pytest.fixture
def launch(checkout: dict[str, str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Calls a script of the checkout, from the folder above; the exit status, what it said, what it had a Python do."""

    def call(*words: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            words, cwd=tmp_path, env=checkout | variables, timeout=60, capture_output=True, text=True, check=False
        )
        log = tmp_path / "log"
        return done.returncode, done.stdout + done.stderr + (log.read_text() if log.exists() else "")

    return call


SEARCH = "checkout/scripts/run_hparam_search.sh"
LAUNCHERS = [(SEARCH, "-P -m chitransfer search --config {}/configs"), ("checkout/scripts/run_tests.sh", "-m pytest")]


@pytest.mark.parametrize(("script", "does"), LAUNCHERS)
@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("is_link", [False, True])
def test_the_scripts_run_under_any_shell_and_through_a_link(
    launch: Callable[..., tuple[int, str]], tmp_path: Path, script: str, does: str, shell: str, is_link: bool
) -> None:
    if is_link:
        (tmp_path / "link").symlink_to(script)
    code, said = launch(shell, "link" if is_link else script, "--all")
    assert code == 0, said
    assert f".venv {does.format(tmp_path / 'checkout')}" in said


@pytest.mark.parametrize(("script", "does"), LAUNCHERS)
def test_the_scripts_find_their_checkout_with_an_exported_cdpath(
    launch: Callable[..., tuple[int, str]], tmp_path: Path, script: str, does: str
) -> None:
    """There ``cd`` finds the folder of the same name elsewhere."""
    (tmp_path / "others" / "checkout" / "scripts").mkdir(parents=True)
    code, said = launch("bash", script, CDPATH=str(tmp_path / "others"))
    assert code == 0, said
    assert f".venv {does.format(tmp_path / 'checkout')}" in said


def test_an_own_environment_takes_no_packages_from_elsewhere(launch: Callable[..., tuple[int, str]]) -> None:
    """Neither is pip to take them for installed nor the search to import them."""
    code, said = launch("bash", SEARCH, PYTHONPATH="/of/a/module", PYTHONHOME="/of/a/module")
    assert code == 0, said
    assert ".venv -m pip install" in said
    assert ".venv -P -m chitransfer search" in said
    assert "/of/a/module" not in said


def test_pip_installs_in_the_environment_where_a_setting_says_for_the_user(
    launch: Callable[..., tuple[int, str]],
) -> None:
    _, said = launch("bash", SEARCH, PIP_USER="1")
    (line,) = (line for line in said.splitlines() if "pip install" in line)
    assert line.endswith("PIP_USER=0")


def test_without_a_python_that_is_new_enough_only_that_is_said(
    launch: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "python"):
        stub = tmp_path / "stub" / "bin" / name
        stub.write_text("#!/bin/sh\nexit 1\n")
        stub.chmod(0o755)
    code, said = launch("bash", SEARCH)
    assert code == 2
    assert said == "[chitransfer] Python 3.11 or newer is needed and was not found; install it and run this again.\n"


@pytest.mark.parametrize("has_pip", [True, False])
def test_where_ensurepip_is_a_package_of_its_own_pip_does_without(
    launch: Callable[..., tuple[int, str]], tmp_path: Path, has_pip: bool
) -> None:
    """As on Debian and Ubuntu without python3-venv."""
    refused = '*--without-pip) ;; *"-m venv"*) echo Install python3-venv.; exit 1 ;; ' + (
        "" if has_pip else "*pip*) exit 1 ;;"
    )
    (tmp_path / "stub" / "bin" / "python3").write_text(f'{STUB}case "$*" in {refused} esac\n')
    code, said = launch("bash", SEARCH)
    assert (code == 0) is has_pip
    assert ("no virtual environment could be made: Install python3-venv." in said) is not has_pip
    environment = tmp_path / "checkout" / ".venv"
    assert f"stub -m pip --python {environment}/bin/python install --quiet pip" in said
    assert (".venv -m pip install" in said) is has_pip


@pytest.mark.parametrize("has_other", [True, False])
def test_a_python_newer_than_the_pinned_packages_is_the_last_choice(
    launch: Callable[..., tuple[int, str]], tmp_path: Path, has_other: bool
) -> None:
    folder = tmp_path / "stub" / "bin"
    python = folder / "python3"
    python.write_text(f'{STUB}case "$*" in *"(3, 14)"*) exit 1 ;; --version) echo Python 3.15.0 ;; esac\n')
    for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python"):
        (folder / name).write_text(STUB if has_other and name == "python3.13" else "#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    code, said = launch("bash", SEARCH)
    assert code == 0
    newer = "[chitransfer] Python 3.15.0 is newer than 3.14; if the installation fails, install Python 3.14 and run"
    assert (newer in said) is not has_other


@pytest.mark.parametrize("folder", ["checkout", "checkout/.venv"])
def test_a_checkout_that_cannot_be_written_says_what_to_do(
    launch: Callable[..., tuple[int, str]], tmp_path: Path, folder: str
) -> None:
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    place.chmod(0o555)
    # root may write everywhere, unless that is taken from it.
    bound = ["setpriv", "--bounding-set", "-dac_override"] if os.getuid() == 0 else []
    if bound and (shutil.which("setpriv") is None or subprocess.run([*bound, "true"], check=False).returncode):
        pytest.skip("root may write everywhere here")
    code, said = launch(*bound, "bash", SEARCH)
    place.chmod(0o755)
    assert code == 2
    assert f"[chitransfer] {place} cannot be written, so nothing can be installed in " in said
    assert "activate a virtual environment that has chitransfer, or work in a copy" in said
    assert "venv --clear" not in said

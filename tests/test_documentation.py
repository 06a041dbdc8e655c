"""The documents are true: their commands run as they stand, on small tables; links, keys and files are there."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml

from chitransfer.config import Config, load_config, parse_set_options
from chitransfer.evidence.insight import Insight
from chitransfer.evidence.overtuning import Examination

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Where a document may mean a file of the project from.
FOLDERS = ("", "chitransfer", "chitransfer/data/builtin", "docs", "tests")
# Of the original guide, told as such.
OF_THE_GUIDE = {"src/training/train_multitask_quick.py"}
SETTINGS = {
    "num_epochs_pretrain: 100": "num_epochs_pretrain: 2",
    "encoder_hidden_dims: [512, 256]": "encoder_hidden_dims: [16, 8]",
    'choices: ["512_256", "1024_512_256", "256_128"]': 'choices: ["16_8", "8_4"]',
    "encoder_latent_dim: 128": "encoder_latent_dim: 8",
    "choices: [64, 128, 256]": "choices: [4, 8]",
    "n_cv_repeats: 3": "n_cv_repeats: 1",
    "stage2_epochs: 20": "stage2_epochs: 1",
    "random_forest: true ": "random_forest: false",
    "fingerprint_bits: 2048": "fingerprint_bits: 128",
    "dft_chi_csv: builtin:computed_chi ": "dft_chi_csv: my/computed.csv ",
}


def read_commands(document: Path) -> list[tuple[str, str]]:
    """The fenced bash and python blocks of a Markdown file, in order."""
    return [(language, text) for language, text in BLOCK.findall(document.read_text(encoding="utf-8"))]


def small_budgets(text: str) -> str:
    """The same commands with at most four trials."""
    return re.sub(r"(--n[_-]trials )(\d+)", lambda found: f"{found[1]}{min(int(found[2]), 4)}", text)


@pytest.fixture
def workplace(tmp_path: Path, project_root: Path, tables: Any) -> Path:
    """A folder as a fresh clone has it, with a configuration of seconds and the tables the guide names."""
    for name in ("scripts", "src", "configs"):
        shutil.copytree(project_root / name, tmp_path / name)
    (tmp_path / "chitransfer").symlink_to(project_root / "chitransfer")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(project_root / name, tmp_path / name)
    (tmp_path / "my").mkdir()
    names = {"computed.csv": tables.stage1, "measured.csv": tables.chi}
    names |= {"solubility.csv": tables.solubility, "soluble.csv": tables.solubility}
    for name, path in names.items():
        shutil.copy(path, tmp_path / "my" / name)
        shutil.copy(path, tmp_path / name)
    config = tmp_path / "configs" / "config_hparam_search.yaml"
    text = config.read_text(encoding="utf-8")
    for given, small in SETTINGS.items():
        assert given in text, given
        text = text.replace(given, small)
    config.write_text(text.replace("n_trials: 50", "n_trials: 3"), encoding="utf-8")
    # `chitransfer search` without --config takes the defaults; here they must be small too.
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "chitransfer"
    wrapper.write_text(
        f"#!/usr/bin/env bash\n"
        f'if [ "$1" = search ] && [[ "$*" != *--config* && "$*" != *--second-pass* ]]; then shift; '
        f'set -- search --config configs/config_hparam_search.yaml "$@"; fi\n'
        f'exec "{sys.executable}" -m chitransfer "$@"\n'
    )
    wrapper.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", ["docs/guide.md", "README.md"])
def test_every_command_of_the_document_runs(document: str, workplace: Path, project_root: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{workplace / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        # The scripts take an active environment with this checkout's code.
        "PYTHONPATH": str(workplace),
        "CHITRANSFER_CACHE": str(workplace / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    commands = read_commands(project_root / document)
    assert commands
    for language, text in commands:
        # The tests themselves, a server that never ends, and a program that need not be installed.
        lines = [line for line in text.splitlines() if "run_tests.sh" not in line and "dashboard" not in line]
        if shutil.which("sqlite3") is None:
            lines = [line for line in lines if not line.startswith("sqlite3 ")]
        script = small_budgets("\n".join(lines))
        call = ["bash", "-euo", "pipefail", "-c", script] if language == "bash" else [sys.executable, "-c", script]
        done = subprocess.run(call, cwd=workplace, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def anchors_of(document: Path) -> set[str]:
    """What links may lead to in a document: its headings, as they are written in addresses."""
    headings = re.findall(r"^#+ (.*)$", ANY_BLOCK.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", ANY_BLOCK.sub("", document.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = document.parent / name if name else document
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_keys_and_files_that_are_named_exist(document: Path) -> None:
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    for word in re.findall(r"`([\w./-]+)[`=:]", document.read_text(encoding="utf-8")):
        section, dot, key = word.partition(".")
        known = getattr(sections.get(section), "model_fields", None)
        if dot and known is not None and not (ROOT / "chitransfer" / section / f"{key.split('.')[0]}.py").exists():
            assert key.split(".")[0] in known, word
        if "/" in word and word.endswith((".py", ".md", ".sh", ".yaml")) and word not in OF_THE_GUIDE:
            assert any((ROOT / folder / word).exists() for folder in FOLDERS), word


@pytest.mark.parametrize(("file", "written"), [("overtuning.json", Examination), ("insight.json", Insight)])
def test_every_key_for_scripts_is_explained(project_root: Path, file: str, written: type) -> None:
    lines = (project_root / "docs" / "evidence.md").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| `{file}` | `"))
    rows = [lines[first]]
    while lines[first + len(rows)].startswith("| | `"):
        rows.append(lines[first + len(rows)])
    explained = {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[2])}
    assert explained == {field.name for field in dataclasses.fields(written)}


def test_the_clusters_page_names_keys_and_flags_that_exist(
    project_root: Path,
    tmp_path: Path,
    run_command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (project_root / "docs" / "cluster.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    config = load_config(tmp_path / "mine.yaml")
    given = ruamel.yaml.YAML(typ="safe").load(example)["cluster"]
    assert given.items() <= config.cluster.model_dump().items()
    load_config(None, parse_set_options([a or b for a, b in re.findall(r"--set (?:'([^']+)'|([^\s`]+))", text)]))
    keys = set(re.findall(r"`(?:search|cluster|training)\.\w+`", text))
    known = {
        f"`{section}.{key}`" for section, keys in config.model_dump().items() if isinstance(keys, dict) for key in keys
    }
    assert keys
    assert keys <= known
    monkeypatch.setenv("COLUMNS", "200")
    _, help_text, _ = run_command("search", "--help")
    calls = [line for line in text.splitlines() if line.startswith("chitransfer search")]
    assert len(calls) == 4
    for flag in {flag for line in calls for flag in re.findall(r"--[a-z-]+", line)} | {"--workers", "--devices"}:
        assert flag in help_text, flag

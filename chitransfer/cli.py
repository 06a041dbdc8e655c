"""`chitransfer <verb>`: assembles the commands; a user error gives one message and exit code 2.

The commands live in `chitransfer.commands`; slow imports wait until their command runs.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from chitransfer import __version__
from chitransfer.commands.data import data
from chitransfer.commands.evidence import compare, dashboard, report
from chitransfer.commands.model import apply, finetune, predict, pretrain, screen
from chitransfer.commands.rescore import rescore
from chitransfer.commands.search import search, status
from chitransfer.errors import ChitransferError, ConfigError, describe_os_error
from chitransfer.interrupts import (
    TERMINATED,
    end_despite_threads,
    exit_on_termination,
    forget_caught_interrupt,
    repeat_swallowed,
    unlogged_interrupts,
)
from chitransfer.secrecy import mask_passwords

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="chitransfer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP_OPTIONS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"chitransfer {__version__}")
        raise typer.Exit


@app.callback()
def _take_general_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Find the Stage 1 hyperparameters that transfer best to measured polymer χ and solubility."""


for command in (search, status, rescore, apply, pretrain, finetune, predict, screen, compare, report, dashboard):
    app.command()(command)
app.add_typer(data, name="data")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; user errors exit with code 2 and one message, Ctrl-C with 130, SIGTERM with 143."""
    _run(app, sys.argv[1:] if arguments is None else arguments)


def main_verb(verb: str) -> None:
    """Run one command with this process's arguments, for the guide's `python -m src.training.…` names."""
    commands: dict[str, Callable[..., object]] = {"search": search, "pretrain": pretrain, "finetune": finetune}
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(context_settings=HELP_OPTIONS)(commands[verb])
    _run(alone, sys.argv[1:])


def _run(program: typer.Typer, arguments: Sequence[str]) -> NoReturn:
    words = [_hyphenate(word) for word in arguments]
    before = sys.unraisablehook
    # Figures are only files here; the backend that a notebook sets for child processes may not be installed.
    os.environ["MPLBACKEND"] = "agg"
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot display χ is no reason to stop.
            stream.reconfigure(errors="replace")
    try:
        _refuse_lost_folder()
        with exit_on_termination(), repeat_swallowed(), unlogged_interrupts():
            code = program(words, standalone_mode=False)
        # Flushing may fail too, and after the end it could not be reported in our words.
        sys.stdout.flush()
    except ChitransferError as error:
        _complain(f"ERROR: {error}")
        code = 2
    except typer.Exit as stop:
        code = stop.exit_code
    except SystemExit as stop:
        code = stop.code
        if code == TERMINATED:
            _complain("terminated")
        elif isinstance(code, str):
            # As Python itself would do.
            _complain(code)
            code = 1
    except KeyboardInterrupt:
        _complain("interrupted")
        code = 130
    except OSError as error:
        code = _end_on_os_error(error)
    except Exception as error:  # noqa: BLE001 - the last resort: shown, masked, and the exit code tells
        # Typer's own errors (unknown option, missing value) can display themselves.
        show = getattr(error, "show", None)
        if show is not None:
            show()
            code = getattr(error, "exit_code", 2)
        else:
            code = _end_on_mistake(error)
    code = code if isinstance(code, int) else 0
    _give_up_last_words()
    end_despite_threads(code)
    forget_caught_interrupt()
    # What an interrupted command held was freed with its exception.
    sys.unraisablehook = before
    raise SystemExit(code)


def _refuse_lost_folder() -> None:
    """Check that there is a current folder; without one, PyTorch cannot even be imported."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError("the current folder is gone; cd to another") from error


def _end_on_os_error(error: OSError) -> int:
    if error.errno is None:
        return _end_on_mistake(error)
    if error.errno != errno.EPIPE:
        _complain(f"ERROR: {describe_os_error(error)}")
    return 1 if error.errno == errno.EPIPE else 2


def _end_on_mistake(error: Exception) -> int:
    if isinstance(error, MemoryError | RuntimeError):
        # Imported here because it loads PyTorch.
        from chitransfer.shortage import describe_shortage, is_out_of_memory

        if is_out_of_memory(error):
            _complain(f"ERROR: {describe_shortage(error)}")
            return 2
    if isinstance(error, UnicodeEncodeError) and codecs.lookup(error.encoding).name != "utf-8":
        name = error.object[:100].encode("ascii", "backslashreplace").decode()
        _complain(f"ERROR: {name}: cannot be written in this locale ({error.encoding}); set LC_ALL=C.UTF-8")
        return 2
    # A bug of ours: the traceback helps to fix it, but may contain a database's address.
    _complain("".join(traceback.format_exception(error)).rstrip())
    return 1


def _complain(text: str) -> None:
    """Print a line to standard error, which may be closed; the exit code reports the error in any case."""
    with suppress(OSError):
        print(mask_passwords(text), file=sys.stderr)


def _give_up_last_words() -> None:
    """Discard output that can no longer be written; else Python would exit with 120 instead of our code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            from chitransfer.console import discard_output

            discard_output(stream)


def _open_closed_streams() -> None:
    """Replace closed standard streams (``>&-``), which are None in Python, with the null device.

    In this order, so that each gets its own file descriptor and none of our files does.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - open as long as the process lives
            # Worker processes inherit these streams.
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _hyphenate(word: str) -> str:
    """Accept the guide's underscores: ``--n_trials`` is ``--n-trials``; values keep theirs.

    Shells expand ``--config ~/x``, but most do not expand ``--config=~/x``.
    """
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + os.path.expanduser(value)  # noqa: PTH111 - it may be no path

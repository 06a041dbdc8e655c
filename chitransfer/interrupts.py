"""Ctrl-C, SIGTERM and a terminal that goes (SIGHUP) end a command as they should, RDKit or not.

Used by `cli`, and wherever this process itself works out structures.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

TERMINATED = 128 + signal.SIGTERM
# What an interrupted piece of work is left by: Ctrl-C, or what terminates under `exit_on_termination`.
INTERRUPTS = (KeyboardInterrupt, SystemExit)
SECONDS_BEFORE_REPEATING = 0.05
# Name of the threads that compute in PyTorch; one that hangs is left behind.
COMPUTING = "chitransfer computing"


def restore_interrupts() -> None:
    """Let Ctrl-C reach Python again; nothing to do outside the main thread.

    RDKit's substructure search puts a handler of its own in place and leaves it there, which swallows the signal.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def same_interrupts() -> Iterator[None]:
    """Put the handler of Ctrl-C back after work that may install another, such as importing dask-jobqueue."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGINT, before)


def hangup_signals() -> list[int]:
    """SIGHUP, where the system has it and it is heeded, as it is not under `nohup`."""
    number = getattr(signal, "SIGHUP", None)
    return [] if number is None or signal.getsignal(number) is signal.SIG_IGN else [number]


def ignore_second_hangup(number: int) -> None:
    """If the signal that came is SIGHUP, let the next one pass: shell and system may send one each."""
    if number in hangup_signals():
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def exit_on_termination() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit(143), so that what Ctrl-C has cleaned up is cleaned up here as well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        ignore_second_hangup(number)
        sys.exit(TERMINATED)

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, *hangup_signals())}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def repeat_swallowed() -> Iterator[None]:
    """Send an interrupt again that came while Python ran a `__del__` or the callback of a weak reference.

    Python prints what is raised there and goes on as if nothing had happened.
    """
    previous = sys.unraisablehook

    def hear(unraisable: UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, INTERRUPTS):
            previous(unraisable)
            return
        number = signal.SIGINT if issubclass(unraisable.exc_type, KeyboardInterrupt) else signal.SIGTERM
        # A moment later and from another thread: raised here it would be lost again.
        again = threading.Timer(SECONDS_BEFORE_REPEATING, _send_again, (number,))
        again.daemon = True
        again.start()

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = previous


@contextmanager
def unlogged_interrupts() -> Iterator[None]:
    """Keep libraries that log what passes through them, as SQLAlchemy's pools do, from printing an interrupt."""

    def is_mishap(record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or not issubclass(kind, INTERRUPTS)

    # What prints the records of libraries, which have no handler of their own.
    printer = logging.lastResort
    if printer is None:
        yield
        return
    printer.addFilter(is_mishap)
    try:
        yield
    finally:
        printer.removeFilter(is_mishap)


def _send_again(number: int) -> None:
    if sys.platform == "win32":
        # There `os.kill` ends the process on the spot.
        signal.raise_signal(number)
    else:
        # To the process, so that the main thread wakes of it.
        os.kill(os.getpid(), number)


def forget_caught_interrupt() -> None:
    """Let an interrupt that was caught have no say in how the process ends.

    Python remembers a Ctrl-C that left an `exec` of source text, as a dataclass runs it, and under `python -m` it dies
    of the signal in the end, whatever exit code was asked for. The next such text clears its memory.
    """
    exec("")


def end_despite_threads(code: int) -> None:
    """Let the process end with an exit code although a thread that hangs may still be computing then.

    Python's own end stops such a thread in the middle of PyTorch's code, and that aborts the process.
    """
    left = [thread for thread in threading.enumerate() if thread.name == COMPUTING]

    def end() -> None:
        if any(thread.is_alive() for thread in left):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    if left:
        atexit.register(end)

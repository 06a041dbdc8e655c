"""Makes Ctrl-C, SIGTERM and a closed terminal (SIGHUP) end a command properly, despite RDKit.

Used by `cli` and wherever this process itself works on structures.
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
# Exceptions that end interrupted work: Ctrl-C, or a termination under `exit_on_termination`.
INTERRUPTS = (KeyboardInterrupt, SystemExit)
SECONDS_BEFORE_REPEATING = 0.05
# Name of the threads that compute in PyTorch; one that hangs is abandoned.
COMPUTING = "chitransfer computing"


def restore_interrupts() -> None:
    """Let Python handle Ctrl-C again; does nothing outside the main thread.

    RDKit's substructure search installs its own handler and leaves it in place, which swallows the signal.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def same_interrupts() -> Iterator[None]:
    """Restore the Ctrl-C handler after work that may install another, such as importing dask-jobqueue."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGINT, before)


def hangup_signals() -> list[int]:
    """SIGHUP, if the system has it and it is not ignored, as under `nohup`."""
    number = getattr(signal, "SIGHUP", None)
    return [] if number is None or signal.getsignal(number) is signal.SIG_IGN else [number]


def ignore_second_hangup(number: int) -> None:
    """After a SIGHUP, ignore the next one: shell and system may send one each."""
    if number in hangup_signals():
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def exit_on_termination() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit(143), so that both get the same cleanup as Ctrl-C."""
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
    """Resend an interrupt that arrived while Python ran a `__del__` or a weak reference's callback.

    Python prints exceptions raised there and continues as if nothing had happened. Once an interrupt ends the work,
    they are no longer printed (`sys.unraisablehook` stays replaced): what it left half made fails there, such as
    SQLAlchemy's callback of a reference that was not stored yet.
    """
    previous = sys.unraisablehook

    def hear(unraisable: UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, INTERRUPTS):
            previous(unraisable)
            return
        number = signal.SIGINT if issubclass(unraisable.exc_type, KeyboardInterrupt) else signal.SIGTERM
        # Slightly later and from another thread: raised here it would be lost again.
        again = threading.Timer(SECONDS_BEFORE_REPEATING, _send_again, (number,))
        again.daemon = True
        again.start()

    sys.unraisablehook, after = hear, previous
    try:
        yield
    except INTERRUPTS:
        after = _ignore_unraisable
        raise
    finally:
        sys.unraisablehook = after


@contextmanager
def unlogged_interrupts() -> Iterator[None]:
    """Keep libraries that log passing exceptions, as SQLAlchemy's pools do, from printing an interrupt."""

    def is_mishap(record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or not issubclass(kind, INTERRUPTS)

    # Prints log records of libraries without a handler of their own.
    printer = logging.lastResort
    if printer is None:
        yield
        return
    printer.addFilter(is_mishap)
    try:
        yield
    finally:
        printer.removeFilter(is_mishap)


def _ignore_unraisable(unraisable: UnraisableHookArgs) -> None:
    """Replaces `sys.unraisablehook` while an interrupted process ends."""


def _send_again(number: int) -> None:
    if sys.platform == "win32":
        # On Windows `os.kill` would end the process at once.
        signal.raise_signal(number)
    else:
        # Sent to the process, so that the main thread is woken.
        os.kill(os.getpid(), number)


def forget_caught_interrupt() -> None:
    """Keep an interrupt that was caught from affecting how the process ends.

    Python remembers a Ctrl-C that left an `exec` of source text, as dataclasses use it, and under `python -m` then dies
    of the signal in the end, whatever exit code was set. The next such `exec` clears its memory.
    """
    exec("")


def end_despite_threads(code: int) -> None:
    """End the process with an exit code even if a hanging thread is still computing.

    Python's own shutdown would stop such a thread inside PyTorch's code, which aborts the process.
    """
    left = [thread for thread in threading.enumerate() if thread.name == COMPUTING]

    def end() -> None:
        if any(thread.is_alive() for thread in left):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    if left:
        atexit.register(end)

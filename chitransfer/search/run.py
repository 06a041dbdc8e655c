"""A whole search as one call: read the data, open or create the study, drive it, write and report the results.

Called by `chitransfer search`; `search.second_pass` and `evidence.nested` use parts of it.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from rich.console import Console

from chitransfer.config import Config, dump_config
from chitransfer.console import show_progress
from chitransfer.data.assemble import Dataset
from chitransfer.errors import ChitransferError, StudyError, describe_os_error
from chitransfer.files import make_new_folder, write_atomically
from chitransfer.interrupts import INTERRUPTS, hangup_signals, ignore_second_hangup
from chitransfer.provenance import write_provenance
from chitransfer.search.contract import make_contract, make_study_key
from chitransfer.search.driver import SearchDriver, StopReason, StopRequested, stop_in_time
from chitransfer.search.lock import drive_alone, explain_unwritable
from chitransfer.search.objective import (
    refuse_choice_without_runs,
    refuse_constant_objective,
    refuse_nothing_to_learn,
    refuse_objectives_without_table,
)
from chitransfer.search.reevaluate import reevaluate_top
from chitransfer.search.reference import Reference, score_reference
from chitransfer.search.results import expect_runs, read_standing, write_results
from chitransfer.search.space import make_pruner, settle_pruner
from chitransfer.search.storage import (
    STORAGE_ERRORS,
    describe_storage_error,
    explain_write_errors,
    hold_again,
    is_free,
    is_in_use,
)
from chitransfer.search.study import create_study, read_searched_dataset, refuse_taken_name, resume_study
from chitransfer.search.study_folder import StudyFolder, new_study_name, refuse_odd_bytes
from chitransfer.search.summary import (
    Names,
    describe_budget,
    describe_data,
    describe_extension,
    describe_nothing_to_do,
    describe_outcome,
    describe_reference,
)
from chitransfer.search.unread import describe_unread_in_stage1, refuse_rate_of_frozen_encoder
from chitransfer.search.watch import SearchDisplay
from chitransfer.search.workers import Workers, check_workers, describe_workers, make_workers
from chitransfer.secrecy import MaskingFormatter, mask_passwords
from chitransfer.shortage import describe_shortage, is_out_of_memory
from chitransfer.training.settings import make_study_folds

EXIT_CODES: dict[StopReason, int] = {"finished": 0, "timeout": 0, "interrupt": 130, "terminate": 143}
SIGNALS: tuple[StopReason, ...] = ("interrupt", "terminate")
# How long a database server may be away, or a SQLite file in use, before the search stops; how often to retry.
STORAGE_WAIT_SECONDS = 600.0
STORAGE_POLL_SECONDS = 1.0
# How often a search checks its lock on the server.
LOCK_CHECK_SECONDS = 10.0
Draw = Callable[[optuna.Study, Reference, StudyFolder], Sequence[str] | None]
logger = logging.getLogger("chitransfer")


def run_search(
    config: Config,
    console: Console,
    *,
    resume: StudyFolder | None = None,
    allow_extended_space: bool = False,
    draw: Draw,
) -> int:
    """Search, from tables to results.

    Parameters
    ----------
    config
        The whole configuration, flags included.
    resume
        The study to resume; ``None`` starts a new one under ``results_dir/hparam_search/``.
    allow_extended_space
        Let a resumed study take a wider search space.
    draw
        Draws the figures of a study with at least one complete trial, writes any further remarks, and returns them as
        lines; called last.

    Returns
    -------
    int
        The exit code: 0 finished or out of time, 130 after Ctrl-C, 143 after SIGTERM.

    Raises
    ------
    ChitransferError
        The configuration, data or study cannot be used; nothing already computed is lost.
    """
    check_workers(config)
    refuse_constant_objective(config)
    refuse_nothing_to_learn(config)
    refuse_objectives_without_table(config)
    # A study that already has this setting may continue.
    if resume is None:
        refuse_choice_without_runs(config)
        refuse_rate_of_frozen_encoder(config)
    folder = resume or _new_folder(config)
    with log_to(folder.log), drive_alone(folder):
        return _search(config, console, folder, resume is not None, allow_extended_space, draw)


def _new_folder(config: Config) -> StudyFolder:
    root = (Path(config.paths.results_dir) / "hparam_search").resolve()
    refuse_odd_bytes(root)
    with explain_unwritable(root):
        path = root / config.search.study_name if config.search.study_name else make_new_folder(root, new_study_name())
        path.mkdir(parents=True, exist_ok=True)
    folder = StudyFolder(path, config.search.storage)
    if folder.database.exists():
        raise StudyError(
            f"{folder.path}: a study of that name exists; continue it with {folder.resume_command}, or choose another "
            "--study-name"
        )
    return folder


def _search(
    config: Config,
    console: Console,
    folder: StudyFolder,
    is_resumed: bool,
    allow_extended_space: bool,
    draw: Draw,
) -> int:
    console.print(f"study {folder.name}")
    with show_progress(console) as progress:
        dataset = read_searched_dataset(config, progress)
    config = settle_pruner(config, dataset)
    about_reference = describe_reference(config, Names.of(folder))
    unread = describe_unread_in_stage1(config, dataset)
    say_and_log(console, [*describe_data(dataset, config), *unread, *describe_budget(config), *about_reference])
    # Before the study is created: with too few polymers for the folds, it could not be resumed with another number.
    folds, contract = make_study_folds(config, dataset), make_contract(config, dataset)
    opening = partial(open_study, folder, config, contract, allow_extended_space=allow_extended_space)
    study = opening(is_new=False) if is_resumed else None
    if study is None:
        refuse_taken_name(folder)
    with ExitStack() as opened:
        # Refusals must come before a new study exists, which could not be resumed with other settings.
        workers = opened.enter_context(closing(make_workers(config, dataset, make_study_key(folder, contract))))
        study = study or opening(is_new=True)
        opened.pop_all()
    say_and_log(console, describe_extension(study, config))
    write_provenance(folder.path, dataset)
    say_and_log(console, describe_workers(workers, config))
    reason: StopReason | None = None
    try:
        try:
            with closing(workers):
                with say_how_to_go_on(console, folder):
                    reference = score_reference(
                        folder.reference, config, dataset, folds, lambda line: say_and_log(console, [line])
                    )
                display = SearchDisplay(console, config.search, read_standing(study), expect_runs(config.search))
                reason = drive_until_stopped(config, dataset, study, folder, workers, display)
        finally:
            write_what_there_is(folder, study)
        if reason == "finished" and display.n_ended == 0:
            say_and_log(console, [describe_nothing_to_do(study, config)])
        lines: Sequence[str] = []
        # Selection by fresh runs or one standard error may recommend another trial, which is known only later.
        if config.search.select == "best":
            say_and_log(console, describe_outcome(study, folder, config, reference, reason))
        with say_how_to_go_on(console, folder):
            try:
                if read_standing(study).best is not None:
                    lines = draw(study, reference, folder) or []
            finally:
                if config.search.select != "best":
                    say_and_log(console, describe_outcome(study, folder, config, reference, reason))
        folder.check_there()
    except STORAGE_ERRORS as error:
        folder.check_there()
        if reason not in SIGNALS:
            raise StudyError(
                f"{describe_storage_error(folder.place, error)}. Resume with: {folder.resume_command}"
            ) from None
        # A user who stops a search need not wait for its database to report its state.
        lines = [
            f"search stopped. {describe_storage_error(folder.place, error)}",
            f"resume with: {folder.resume_command}",
        ]
    say_and_log(console, lines)
    return EXIT_CODES[reason]


def say_and_log(console: Console, lines: Sequence[str]) -> None:
    """Print lines unchanged and write them to the log."""
    for line in lines:
        console.print(line)
        logger.info("%s", line)


@contextmanager
def say_how_to_go_on(console: Console, folder: StudyFolder) -> Iterator[None]:
    """Wraps slow work that handles no signals itself: an interruption prints the command to resume."""
    try:
        yield
    except INTERRUPTS:
        say_and_log(console, [f"interrupted; continue with: {folder.resume_command}"])
        raise


def open_study(
    folder: StudyFolder,
    config: Config,
    contract: Mapping[str, Any],
    *,
    is_new: bool,
    allow_extended_space: bool = False,
) -> optuna.Study:
    """Create a study, or open it to resume it, and write its configuration.

    Raises
    ------
    StudyError
        As in `create_study` and `resume_study`; if the study cannot be resumed or its name is taken, its configuration
        stays unchanged.
    """
    pruner = make_pruner(config.search, config.training.num_epochs_pretrain)
    if is_new:
        refuse_taken_name(folder)
        # The configuration first, so that a study that exists can always be resumed.
        write_atomically(folder.config, dump_config(config))
        return create_study(folder, contract, pruner)
    study = resume_study(folder, contract, pruner, allow_extended_space=allow_extended_space)
    write_atomically(folder.config, dump_config(config))
    return study


def drive_until_stopped(
    config: Config, dataset: Dataset, study: optuna.Study, folder: StudyFolder, workers: Workers, display: SearchDisplay
) -> StopReason:
    """Drive the study and re-evaluate its top trials, until all is done, time is up or a signal comes."""
    with listen_for_stop() as stop, display:
        stop_requested = stop_in_time(stop.reason, config.search.timeout_hours)
        reason = _drive(config, dataset, study, folder, workers, display, stop_requested)
        if reason == "finished":
            holding = _holding_lock(folder, stop_requested)
            reason = reevaluate_top(config, dataset, study, folder, workers, holding, display)
    if reason in SIGNALS:
        # The remaining work, figures included, may take longer than a batch system waits before it kills.
        display.search_stopped(folder.resume_command)
    return reason


def _holding_lock(folder: StudyFolder, stop_requested: StopRequested) -> StopRequested:
    """`stop_requested` that first makes sure, at every call, that the study's lock is held.

    Raises StudyError if another driver has taken the lock.
    """

    def ask() -> StopReason | None:
        # If the server was away between two accesses, the lock is lost unnoticed; while it is away, nobody can take it.
        with suppress(*STORAGE_ERRORS):
            hold_again(folder.storage, folder.name, LOCK_CHECK_SECONDS)
        return stop_requested()

    return ask


def _drive(
    config: Config,
    dataset: Dataset,
    study: optuna.Study,
    folder: StudyFolder,
    workers: Workers,
    display: SearchDisplay,
    stop_requested: StopRequested,
) -> StopReason:
    """Drive the study; if its database was away or in use for a while, continue like a resumed search."""
    while True:
        try:
            holding = _holding_lock(folder, stop_requested)
            return SearchDriver(config, dataset, study, folder, workers, display, holding).run()
        except STORAGE_ERRORS as error:
            what = describe_storage_error(folder.place, error)
            may_come_back = folder.storage is not None or is_in_use(error)
        # Outside the except block: an error raised here must not carry along the database's own message.
        folder.check_there()
        if may_come_back:
            display.storage_away(what)
            if _wait_for_storage(study, folder, stop_requested):
                continue
            if (reason := stop_requested()) in SIGNALS:
                return reason
        raise StudyError(f"{what}. Resume with: {folder.resume_command}")


def _wait_for_storage(study: optuna.Study, folder: StudyFolder, stop_requested: StopRequested) -> bool:
    deadline = time.monotonic() + STORAGE_WAIT_SECONDS
    while time.monotonic() < deadline and stop_requested() is None:
        # SQLite waits in one piece and cannot be interrupted by signals meanwhile.
        if folder.storage is not None or is_free(folder.database):
            with suppress(*STORAGE_ERRORS):
                study.get_trials(deepcopy=False)
                hold_again(folder.storage, folder.name)
                return True
        time.sleep(STORAGE_POLL_SECONDS)
    return False


def write_what_there_is(folder: StudyFolder, study: optuna.Study) -> None:
    """Write the result tables; a failed disk or database must not hide why the search ended."""
    ends_by_error = sys.exc_info()[1] is not None
    try:
        folder.check_there()
        write_results(folder, study)
    except (OSError, StudyError, *STORAGE_ERRORS) as error:
        logger.error("all_trials.csv and best_params.json could not be written: %s", mask_passwords(str(error)))
        if not ends_by_error:
            raise


class _Stop:
    """Remembers the first signal; the driver polls it."""

    def __init__(self) -> None:
        self._reason: StopReason | None = None

    def reason(self) -> StopReason | None:
        """Why to stop; ``None`` to continue."""
        return self._reason

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Signal handler; a second signal ends the process at once."""
        ignore_second_hangup(number)
        if self._reason is not None:
            raise KeyboardInterrupt
        self._reason = "interrupt" if number == signal.SIGINT else "terminate"


@contextmanager
def listen_for_stop() -> Iterator[_Stop]:
    """Catch Ctrl-C, SIGTERM and SIGHUP, instead of being killed by them, while the context lasts."""
    stop = _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM, *hangup_signals())
    previous = {number: signal.signal(number, stop.hear) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # A SIGHUP already caught may come again, however late.
                signal.signal(number, handler)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write the program's log to a file while the context lasts; an error that ends it is logged there."""
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    optuna.logging.disable_default_handler()
    try:
        yield
    except ChitransferError as error:
        logger.error("%s", error)
        raise
    except OSError as error:
        logger.error("%s", describe_os_error(error))
        raise
    except Exception as error:
        if is_out_of_memory(error):
            logger.error("%s", describe_shortage(error))
        else:
            logger.exception("a bug in the program")
        raise
    except BaseException as error:
        logger.error("stopped immediately by %s", type(error).__name__)
        raise
    finally:
        logger.removeHandler(handler)
        # On a full disk the last lines cannot be written; that must not hide why the search ended.
        with suppress(OSError):
            handler.close()

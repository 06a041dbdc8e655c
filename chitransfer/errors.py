"""User-facing errors: each says what must hold, what was given, and where; the command line exits with 2."""

import errno

_REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check permissions",
    errno.EPERM: "check permissions",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOTDIR: "a part of the path is a file; name a folder there",
    errno.EEXIST: "a file is in the way of a folder; choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u) or use fewer of them",
    errno.ENOMEM: "raise the limit of memory (ulimit -v, the job's limit) or use fewer processes",
}
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# Error numbers of a file system without locks.
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
OTHER_RESULTS_FOLDER = "make it writable or name another one with --results-dir"


class ChitransferError(Exception):
    """A problem the user can solve; its text is shown without a traceback."""


class ConfigError(ChitransferError):
    """The configuration asks for something the program cannot do."""


class DataError(ChitransferError):
    """A table, a structure or a fetched file cannot be used as it is."""


class StudyError(ChitransferError):
    """A study cannot be created, resumed or read."""


class CheckpointError(ChitransferError):
    """A model or feature file is damaged, foreign, or made for something else."""


class TrainingError(ChitransferError):
    """Training cannot continue; in a search this fails the trial, not the study."""


def say_install(extra: str) -> str:
    """How to install one of the extras in pyproject.toml; chitransfer itself is in no package registry."""
    return f"install it in the checkout with `pip install -c constraints.txt -e '.[{extra}]'`"


def describe_os_error(error: OSError) -> str:
    """What the operating system refused, for which file, and the remedy, in one line."""
    remedy = _REMEDIES.get(error.errno or 0, "check the path and the disk")
    if error.errno in {errno.EAGAIN, errno.ENOMEM}:
        return f"the operating system gives no more ({error.strerror}); {remedy}"
    what = "written" if error.errno in {*NO_SPACE, errno.EROFS} else "used"
    return f"{name_place(error)}: cannot be {what} ({error.strerror}); {remedy}"


def name_place(error: OSError, *others: object) -> str:
    """The file an error is about or, if it names none, what it may have been: one of `others`, say."""
    if error.filename is not None:
        return str(error.filename)
    *first, last = ["the output", "a temporary folder (TMPDIR)", "/dev/shm", *map(str, others)]
    return f"{', '.join(first)} or {last}"

"""The errors a user may meet: each says what must hold, what came, and where; the command line exits 2 on them."""

import errno

_REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk",
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
# What a file system says that has no locks.
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
OTHER_RESULTS_FOLDER = "make it writable or name another one with --results-dir"


class ChitransferError(Exception):
    """A problem the user can solve; its text is shown without a traceback."""


class ConfigError(ChitransferError):
    """The configuration does not say something the program can do."""


class DataError(ChitransferError):
    """A table, a structure or a fetched file cannot be used as it is."""


class StudyError(ChitransferError):
    """A study cannot be created, resumed or read."""


class CheckpointError(ChitransferError):
    """A model or feature file is damaged, foreign, or made for something else."""


class TrainingError(ChitransferError):
    """Training cannot go on; in a search this fails the trial, not the study."""


def say_install(extra: str) -> str:
    """How to add one of the extras of pyproject.toml; chitransfer itself is in no registry of packages."""
    return f"install it in the checkout with `pip install -c constraints.txt -e '.[{extra}]'`"


def describe_os_error(error: OSError) -> str:
    """What the operating system refused, of which file, and the remedy, in one line."""
    remedy = _REMEDIES.get(error.errno or 0, "check the path and the disk")
    if error.errno in {errno.EAGAIN, errno.ENOMEM}:
        return f"the operating system gives no more ({error.strerror}); {remedy}"
    what = "written" if error.errno in {*NO_SPACE, errno.EROFS} else "used"
    return f"{name_place(error)}: cannot be {what} ({error.strerror}); {remedy}"


def name_place(error: OSError, *others: object) -> str:
    """The file an error speaks of, or what it may have been where it names none: some of `others`, say."""
    if error.filename is not None:
        return str(error.filename)
    *first, last = ["the output", "a temporary folder (TMPDIR)", "/dev/shm", *map(str, others)]
    return f"{', '.join(first)} or {last}"

"""The errors a user may meet: each says what must hold, what came, and where; the command line exits 2 on them."""


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

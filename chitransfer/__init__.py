"""chitransfer: find the pretraining hyperparameters that transfer best from computed to measured polymer χ."""

__version__ = "0.1.0"

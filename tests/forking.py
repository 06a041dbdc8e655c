"""Processes that start in a moment: a server imports once what is slow, and every process is forked from it."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "chitransfer.cli",
        "chitransfer.search.run",
        "chitransfer.search.dask_workers",
        "chitransfer.report.figures",
        # What a first optimiser and a first study import.
        "torch._dynamo",
        "optuna.storages._rdb.storage",
        "alembic.migration",
    ]
)

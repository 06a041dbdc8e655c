"""The transfer search; the only package that drives Optuna and Dask (`evidence` and `report` read its studies)."""

"""The transfer search; the only package that knows Optuna and Dask."""

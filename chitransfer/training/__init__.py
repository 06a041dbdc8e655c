"""The epoch loop, Stage 1, Stage 2, losses and metrics."""

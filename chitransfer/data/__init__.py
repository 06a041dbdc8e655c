"""Read, fetch, build, check and split the three tables."""

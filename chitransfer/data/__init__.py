"""Reading, fetching, checking and splitting the three tables."""

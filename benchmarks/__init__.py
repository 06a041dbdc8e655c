"""Side-by-side timings and measurements behind `docs/performance.md`; `python -m benchmarks` runs the timings."""

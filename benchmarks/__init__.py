"""Side-by-side timings and measurements for `docs/performance.md`; `python -m benchmarks` runs the timings."""

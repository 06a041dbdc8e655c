"""`python -m benchmarks [CASE …]`: run cases, write `benchmarks/results/<machine>.json`, print the table."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from benchmarks.cases import CASES, run_case
from benchmarks.measure import as_markdown, write_results
from benchmarks.synthetic import FULL_ROWS


def main() -> None:
    """Run the chosen cases; each is written as soon as it is finished."""
    parser = argparse.ArgumentParser(description="Side-by-side timings; see docs/performance.md.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--rows", type=int, default=FULL_ROWS, help="rows of the Stage 1 table (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of this process (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.cases) - set(CASES))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    warnings.simplefilter("ignore", UserWarning)
    for name in arguments.cases or CASES:
        timings = run_case(name, arguments.rows, arguments.threads)
        path = write_results(arguments.results, timings, arguments.threads)
        for t in timings:
            ratios = f"× {t.ratio_wall:.2f} ({t.ratio_cpu:.2f} CPU)"
            print(f"{t.case} | {t.variant}: {t.wall:.3g} s ({t.cpu:.3g} CPU), {ratios} {t.note}", flush=True)
    print(f"\n{as_markdown(path)}\n\n{path}")


if __name__ == "__main__":
    main()

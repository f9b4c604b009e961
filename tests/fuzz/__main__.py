"""The driver: `python -m tests.fuzz TARGET --runs N --seed S`; without a target, all of them one after another."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parent))

from fuzz_engine import CORPUS, BrokenPromiseError, Report, Target, corpus, name_of, run
from fuzz_targets import BY_NAME

HANG_S = 120
KEPT_MAX = 16
KEPT_BYTES_MAX = 16 << 10


def main() -> int:
    """Run the command line; returns 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"of: {', '.join(BY_NAME)}; default: all")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs per target (default 100000)")
    parser.add_argument(
        "--seconds", type=float, help="end each target after so long, if its runs last longer"
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="the same inputs again for the same seed"
    )
    parser.add_argument(
        "--keep", action="store_true", help="put inputs that end in a new way into tests/fuzz/corpus"
    )
    parser.add_argument(
        "--outcomes", action="store_true", help="say how the inputs ended, and how many of them"
    )
    parser.add_argument("--input", type=Path, help="try this one file, and nothing else")
    options = parser.parse_args()
    unknown = [name for name in options.target if name not in BY_NAME]
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    targets = [BY_NAME[name] for name in options.target] or list(BY_NAME.values())
    if options.input:
        return _one(targets[0], options.input)
    broken = 0
    for target in targets:
        broken += _run(target, options)
    return min(broken, 1)


def _one(target: Target, path: Path) -> int:
    with target.open() as check:
        print(check(path.read_bytes()))
    return 0


def _run(target: Target, options: argparse.Namespace) -> int:
    # A check that never ends shows where it is, and ends the run.
    faulthandler.dump_traceback_later((options.seconds or 12 * 3600) + HANG_S, exit=True)
    try:
        report = run(target, options.runs, options.seed, options.seconds)
    except BrokenPromiseError as error:
        path = Path(f"fuzz-{target.name}-{name_of(error.data)}")
        path.write_bytes(error.data)
        print(
            f"{target.name}: BROKEN with seed {options.seed}: {error}\n  the input is in {path}",
            file=sys.stderr,
        )
        return 1
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(_line(report), flush=True)
    if options.outcomes:
        for outcome, count in sorted(report.outcomes.items(), key=lambda each: -each[1]):
            print(f"  {count:9,}  {outcome}")
    if options.keep:
        _keep(report)
    return 0


def _line(report: Report) -> str:
    per_s = report.inputs / max(report.seconds, 1e-9)
    return (
        f"{report.target:14} seed {report.seed}: {report.inputs:,} inputs in {report.seconds:.0f} s ({per_s:,.0f}/s), "
        f"{len(report.outcomes)} outcomes, slowest {report.slowest_s * 1000:.0f} ms, memory +{report.growth_bytes >> 20} MiB"
    )


def _keep(report: Report) -> None:
    """Small inputs with distinct outcomes, so the corpus is small enough to replay in every test run."""
    directory = CORPUS / report.target
    directory.mkdir(parents=True, exist_ok=True)
    room = KEPT_MAX - len(corpus(report.target))
    small = sorted((each for each in report.found if len(each) <= KEPT_BYTES_MAX), key=len)
    for data in small[:: max(1, len(small) // KEPT_MAX)][: max(0, room)]:
        (directory / name_of(data)).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())

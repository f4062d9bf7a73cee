"""How long the `dalil` command takes where it computes nothing: fresh processes, and what they import.

python -m tests.benchmarks.startup [--times 15] [--file pipelines/gallery/movielens.yaml]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.measure import result

ROOT = Path(__file__).parents[2]
COMMAND = ("-P", "-m", "pipelines.cli")
TARGETS = {"--help": 0.5, "validate": 1.5, "render": 1.5}
"""Seconds that each may take."""
SHOWN = 8


def main() -> None:
    """Time each command and list its slowest imports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=15, help="processes of each command")
    parser.add_argument("--file", type=Path, default=ROOT / "pipelines" / "gallery" / "movielens.yaml")
    chosen = parser.parse_args()
    results = {}
    commands = {"--help": ["--help"], "validate": ["validate", chosen.file], "render": ["render", chosen.file]}
    bare = seconds([sys.executable, "-c", "pass"], chosen.times)
    print(f"{'seconds':<12} {'min':>7} {'median':>7} {'max':>7} {'target':>7}")
    print(f"{'bare Python':<12} {min(bare):>7.3f} {statistics.median(bare):>7.3f} {max(bare):>7.3f}")
    for name, arguments in commands.items():
        taken = seconds([sys.executable, *COMMAND, *map(str, arguments)], chosen.times)
        middle = statistics.median(taken)
        print(f"{name:<12} {min(taken):>7.3f} {middle:>7.3f} {max(taken):>7.3f} {TARGETS[name]:>7.1f}")
        results[name] = {"min": min(taken), "median": middle, "max": max(taken), "target": TARGETS[name]}
    for name, arguments in commands.items():
        slowest, total = imports([*COMMAND, *map(str, arguments)])
        print(f"\n{name}: {total:.0f} ms of imports; the slowest packages by their own modules' time")
        print("\n".join(f"  {milliseconds:>7.1f} ms  {package}" for package, milliseconds in slowest))
    print()
    result({"bare": statistics.median(bare), **results})


def seconds(command: list[str], times: int) -> list[float]:
    """Wall seconds of each of so many fresh processes; one more before them fills the caches of files."""
    taken = []
    for _ in range(times + 1):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return taken[1:]


def imports(arguments: list[str]) -> tuple[list[tuple[str, float]], float]:
    """Packages with the milliseconds that their modules take to import (without what these import), and the sum."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True)
    spent: dict[str, float] = {}
    for line in done.stderr.splitlines():
        own, _, name = line.removeprefix("import time:").split("|")
        if own.strip().isdigit():
            package = name.strip().partition(".")[0]
            spent[package] = spent.get(package, 0.0) + int(own) / 1000
    return sorted(spent.items(), key=lambda item: -item[1])[:SHOWN], sum(spent.values())


def environment() -> dict[str, str]:
    """This checkout's modules, whatever else is installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    main()

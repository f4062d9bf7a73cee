"""Criteo's TSV to ready shards: Dalil's ingest beside a bare polars pipeline and FuxiCTR's preprocessing.

    python -m tests.benchmarks.ingest [--rows 1000000] [--peers PEERS/bin/python]

FuxiCTR (2.3.10) runs in a virtual environment of its own, since it needs an older polars:

    python -m venv PEERS && PEERS/bin/pip install fuxictr==2.3.10 'polars<2' deepctr-torch==0.3 torch==2.13.0

Each run is a fresh process that reads plain files from the page cache: seconds are those of the work itself, without
imports and without the start of Ray, and memory is the highest sum over the process and its children (pages that they
share count once). All write 13 logarithms of counts (FuxiCTR: the counts) and 26 ids. Dalil checks every row besides,
and neither it nor the streaming pipeline holds the rows in memory.

In one file the rows are divided at random. FuxiCTR cannot do that; it gets train, valid and test as three files with
the same rows. So that the vocabularies can be compared, Dalil and polars run on these as well.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NUMBERS = [f"I{number}" for number in range(1, 14)]
CATEGORIES = [f"C{number}" for number in range(1, 27)]
SHARES = {"train": 8, "valid": 1, "test": 1}
SEED = 2026
CATEGORIES_IN_ALL = 390_000

Done = tuple[float, int]
"""Seconds, and the categories of all vocabularies but the missing one."""


def dalil(folder: Path, files: bool, min_count: int) -> Done:
    from components.dataset import DatasetSpec
    from components.ingest import ingest

    split = {"by": "files", **{name: str(folder / f"{name}.tsv") for name in ("valid", "test")}}
    source = folder / ("train.tsv" if files else "rows.tsv")
    settings = {"source": str(source), "format": "criteo", "min_count": min_count}
    spec = DatasetSpec.model_validate(settings | ({"split": split} if files else {}))
    start = time.perf_counter()
    schema = ingest(spec, folder / "out", lambda done, total, stage: None)
    seconds = time.perf_counter() - start
    sizes = [field.cardinality - 1 for field in schema.fields if field.kind == "categorical"]
    return seconds, sum(sizes) - len(CATEGORIES)  # every field has missing values


def polars_in_memory(folder: Path, files: bool, min_count: int) -> Done:
    """Everything in memory at once: as fast as we could write it."""
    import polars as pl

    start = time.perf_counter()
    rows = _scan(folder, files).collect()
    if not files:
        rows = rows.with_columns(split=_split_of(pl.int_range(pl.len()).shuffle(SEED) * 10 // pl.len()))
    vocabularies = _vocabularies(rows.lazy(), min_count)
    (folder / "out").mkdir()
    encoded = rows.select("split", *_encoded(vocabularies)).lazy()
    writes = [
        encoded.filter(pl.col("split") == code)
        .drop("split")
        .sink_parquet(folder / "out" / f"{name}.parquet", compression="zstd", compression_level=1, lazy=True)
        for code, name in enumerate(SHARES)
    ]
    pl.collect_all(writes)
    return time.perf_counter() - start, _size(vocabularies)


def polars_streaming(folder: Path, files: bool, min_count: int) -> Done:
    """In two passes over the file, so that memory does not grow with rows."""
    import polars as pl

    start = time.perf_counter()
    rows = _scan(folder, files)
    if not files:
        rows = rows.with_columns(split=_split_of(pl.col("row").hash(SEED) % 10))
    vocabularies = _vocabularies(rows, min_count, engine="streaming")
    encoded = rows.select("split", *_encoded(vocabularies))
    target = pl.PartitionBy(folder / "out", key="split", include_key=False)
    encoded.sink_parquet(target, compression="zstd", compression_level=1, mkdir=True, engine="streaming")
    return time.perf_counter() - start, _size(vocabularies)


def fuxictr(folder: Path, files: bool, min_count: int) -> Done:
    import sys

    from fuxictr.preprocess import FeatureProcessor, build_dataset

    sys.modules["fuxictr.preprocess.build_dataset"].init_ray()
    columns: list[dict[str, Any]] = [
        {"name": NUMBERS, "active": True, "dtype": "float", "type": "numeric"},
        {"name": CATEGORIES, "active": True, "dtype": "str", "type": "categorical"},
    ]
    label = {"name": "label", "dtype": "float"}
    processor = FeatureProcessor(columns, label, dataset_id="out", data_root=str(folder))
    data = {f"{name}_data": str(folder / f"{name}.csv") for name in SHARES}
    start = time.perf_counter()
    build_dataset(processor, **data, data_format="csv", sep="\t", min_categr_count=min_count)
    seconds = time.perf_counter() - start
    features = processor.feature_map.features
    return seconds, sum(features[name]["vocab_size"] - 2 for name in CATEGORIES)  # without padding and unknown


RUNS: dict[str, Callable[[Path, bool, int], Done]] = {
    "dalil": dalil,
    "polars in memory": polars_in_memory,
    "polars streaming": polars_streaming,
    "fuxictr": fuxictr,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--min-count", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each but FuxiCTR, by turns; the median counts")
    parser.add_argument("--peers", type=Path, help="Python of the peers' environment; without it FuxiCTR is left out")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--run", nargs=3, metavar=("NAME", "FOLDER", "FILES"), help="one run, in this process")
    chosen = parser.parse_args()
    if chosen.run:
        name, folder, files = chosen.run
        seconds, categories = RUNS[name](Path(folder), files == "files", chosen.min_count)
        print("\nRUN " + json.dumps({"seconds": seconds, "categories": categories}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _generate(folder, chosen.rows)
        found: dict[tuple[str, bool], list[dict[str, float]]] = {}
        own = [name for name in chosen.only if name != "fuxictr"]
        for _ in range(chosen.rounds):
            for name in own:
                found.setdefault((name, False), []).append(_measure(name, folder, False, chosen))
        for name in own:
            found[name, True] = [_measure(name, folder, True, chosen)]
        if chosen.peers and "fuxictr" in chosen.only:
            found["fuxictr", True] = [_measure("fuxictr", folder, True, chosen)]
    _show(found, chosen.rows)


def _scan(folder: Path, files: bool) -> Any:
    import polars as pl

    kinds = {"label": pl.Float32, **dict.fromkeys(NUMBERS, pl.Float64), **dict.fromkeys(CATEGORIES, pl.String)}

    def scan(path: Path) -> Any:
        return pl.scan_csv(
            path,
            separator="\t",
            has_header=False,
            schema=kinds,
            quote_char=None,
            empty_string_is_null=False,
            row_index_name=None if files else "row",
        )

    if not files:
        return scan(folder / "rows.tsv")
    return pl.concat(
        scan(folder / f"{name}.tsv").with_columns(split=pl.lit(code, pl.Int8)) for code, name in enumerate(SHARES)
    )


def _split_of(tenth: Any) -> Any:
    """0 to 9 -> 0 train, 1 valid, 2 test"""
    import polars as pl

    return pl.max_horizontal(tenth.cast(pl.Int8) - 7, pl.lit(0, pl.Int8))


def _vocabularies(rows: Any, min_count: int, engine: Any = "auto") -> dict[str, Any]:
    """Field -> its categories of at least so many training rows, the most frequent first."""
    import polars as pl

    counts = [
        rows.filter(pl.col("split") == 0)
        .select(token=name)
        .group_by("token")
        .len()
        .filter(pl.col("len") >= min_count)
        .sort("len", "token", descending=[True, False])
        for name in CATEGORIES
    ]
    frames = pl.collect_all(counts, engine=engine)
    return {name: frame["token"] for name, frame in zip(CATEGORIES, frames, strict=True)}


def _encoded(vocabularies: dict[str, Any]) -> list[Any]:
    import polars as pl

    logarithms = [(pl.col(name).sign() * pl.col(name).abs().log1p()).cast(pl.Float32) for name in NUMBERS]
    ids = [
        (pl.col(name).cast(pl.Enum(tokens), strict=False).to_physical().cast(pl.Int32) + 1).fill_null(0)
        for name, tokens in vocabularies.items()
    ]
    return ["label", *logarithms, *ids]


def _size(vocabularies: dict[str, Any]) -> int:
    return sum(len(tokens) - int((tokens == "").sum()) for tokens in vocabularies.values())


def _generate(folder: Path, rows: int) -> None:
    """rows.tsv, the same rows as train, valid and test.tsv, and these as .csv with a header for FuxiCTR."""
    from tests.benchmarks.criteo_shaped import Criteo

    Criteo(CATEGORIES_IN_ALL, seed=SEED).write_tsv(folder / "rows.tsv", rows)
    header = "\t".join(["label", *NUMBERS, *CATEGORIES]) + "\n"
    with (folder / "rows.tsv").open() as lines:
        for name, share in SHARES.items():
            with (folder / f"{name}.tsv").open("w") as plain, (folder / f"{name}.csv").open("w") as headed:
                headed.write(header)
                for _ in range(rows * share // sum(SHARES.values())):
                    line = next(lines)
                    plain.write(line)
                    headed.write(line)


def _measure(name: str, folder: Path, files: bool, chosen: argparse.Namespace) -> dict[str, float]:
    """seconds, categories and peak (bytes) of a fresh process."""
    python = str(chosen.peers) if name == "fuxictr" else sys.executable
    # The peers' Python starts this file and not the module: their packages alone are to be found.
    start = [python, __file__] if name == "fuxictr" else [python, "-m", "tests.benchmarks.ingest"]
    quiet = os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for source in folder.glob("*.?sv"):
            (Path(work) / source.name).symlink_to(source)
        command = [*start, "--min-count", str(chosen.min_count), "--run", name, work, "files" if files else "one"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet)
        with process, _watched(process.pid) as peak:
            output, errors = process.communicate()
    answers = [line for line in output.splitlines() if line.startswith("RUN ")]
    if not answers:
        raise SystemExit(f"{name} failed:\n{errors[-3000:]}")
    return {**json.loads(answers[-1].removeprefix("RUN ")), "peak": max(peak)}


@contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """Collects the memory of a process tree, ten times a second, as long as the block runs."""
    import psutil

    sums, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            sums.append(sum(map(_memory, _tree(pid))))

    def _tree(pid: int) -> list[psutil.Process]:
        try:
            top = psutil.Process(pid)
            return [top, *top.children(recursive=True)]
        except psutil.Error:
            return []

    def _memory(process: psutil.Process) -> int:
        try:
            return int(process.memory_full_info().pss)
        except (psutil.Error, OSError):
            return 0

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sums
    finally:
        over.set()
        thread.join()


def _show(found: dict[tuple[str, bool], list[dict[str, float]]], rows: int) -> None:
    seconds = {key: statistics.median(run["seconds"] for run in runs) for key, runs in found.items()}
    print(f"{'':<32}{'seconds':>9}{'(range)':>16}{'rows/s':>10}{'peak MiB':>10}{'categories':>12}")
    for (name, files), runs in found.items():
        each = [run["seconds"] for run in runs]
        print(
            f"{name + (', three files' if files else ', one file'):<32}{seconds[name, files]:>9.2f}"
            f"{f'({min(each):.2f}-{max(each):.2f})':>16}{rows / seconds[name, files]:>10,.0f}"
            f"{max(run['peak'] for run in runs) / 2**20:>10,.0f}{runs[0]['categories']:>12,.0f}"
        )
    sizes = {name: runs[0]["categories"] for (name, files), runs in found.items() if files}
    print(f"vocabularies of the same training rows {'agree' if len(set(sizes.values())) == 1 else 'DIFFER'}: {sizes}")
    ratios = {f"time / {name}": seconds["dalil", False] / seconds[name, False] for name, files in found if not files}
    ratios.pop("time / dalil")
    if ("fuxictr", True) in seconds:
        ratios["rows/s / fuxictr"] = seconds["fuxictr", True] / seconds["dalil", False]
        ratios["rows/s / fuxictr, three files"] = seconds["fuxictr", True] / seconds["dalil", True]
    for name, ratio in ratios.items():
        print(f"dalil's {name}: {ratio:.2f}")
    runs = {f"{name}, {'three files' if files else 'one file'}": runs for (name, files), runs in found.items()}
    print("RESULT " + json.dumps({"rows": rows, "runs": runs, "ratios": ratios}))


if __name__ == "__main__":
    main()

"""Processor time of `dalil plan`, which uses one core: 100 billion weights on 128 GPUs, in 26 fields and in 200.

python -m tests.benchmarks.planning
"""

import argparse
import time
from dataclasses import asdict, dataclass

from tests.benchmarks.measure import result
from trainer import zoo
from trainer.advice import advise
from trainer.architecture import Architecture
from trainer.capacity import Cluster, Problem, plan
from trainer.schema import DatasetSchema, Field
from trainer.settings import TrainSettings
from trainer.space import fill_params

GIB = 1024**3


@dataclass(frozen=True)
class Case:
    """DeepFM on `fields` categorical fields, the largest of `rows` rows, each next one a `decay`-th of that."""

    name: str
    fields: int
    rows: float
    decay: float
    hbm: int
    host: int = 0


CASES = (
    Case("fits", 26, 2e9, 1.5, 80),
    Case("fits with host memory", 26, 2e9, 1.5, 16, 1024),
    Case("does not fit", 26, 2e9, 1.5, 16),
    Case("200 fields", 200, 4e8, 1.06, 80),
    Case("200 fields, host memory", 200, 4e8, 1.06, 16, 1024),
    Case("200 fields, does not fit", 200, 4e8, 1.06, 16),
)


@dataclass(frozen=True)
class Result:
    name: str
    weights: int
    tables: int
    fits: bool
    plan_seconds: float
    advice_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=16)
    results = [measured(case, parser.parse_args().nodes) for case in CASES]
    for case in results:
        print(
            f"{case.name:26} {case.weights / 1e9:6.1f} billion weights, {case.tables:3} tables, "
            f"{'fits' if case.fits else 'does not fit':12}: plan {case.plan_seconds:5.1f} s, "
            f"advice {case.advice_seconds:5.1f} s"
        )
    result({"planning": [asdict(case) for case in results]})


def measured(case: Case, nodes: int) -> Result:
    problem = Problem(_architecture(case), TrainSettings(batch_size=65_536))
    cluster = Cluster(nodes, 8, case.hbm * GIB, case.host * GIB)
    started = time.process_time()
    made = plan(problem, cluster)
    planned = time.process_time()
    if not made.fits:
        list(advise(problem, made))
    weights = sum(spec.rows * spec.dim for spec in problem.specs)
    times = planned - started, time.process_time() - planned
    return Result(case.name, weights, len(problem.specs), made.fits, *times)


def _architecture(case: Case) -> Architecture:
    names = [f"C{number}" for number in range(case.fields)]
    rows = [max(3, int(case.rows / case.decay**number)) for number in range(case.fields)]
    schema = DatasetSchema(
        task="ctr",
        label="click",
        fields=tuple(
            Field(name=name, kind="categorical", cardinality=size) for name, size in zip(names, rows, strict=True)
        ),
        rows={"train": 0, "valid": 0, "test": 0},
        label_mean=0.5,
        label_min=0.0,
        label_max=1.0,
    )
    return Architecture.from_dict(fill_params(zoo.template("deepfm", schema), {})).live()


if __name__ == "__main__":
    main()

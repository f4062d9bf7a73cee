"""`dalil run` with the steps of fake_step.py, as a process that tests may kill."""

import sys
from functools import partial
from pathlib import Path

from pipelines import graph, local
from pipelines.cli import main

FAKE_STEP = (sys.executable, str(Path(__file__).with_name("fake_step.py")))

if __name__ == "__main__":
    graph.code_version = lambda step: "as ever"
    local.run = partial(local.run, command=FAKE_STEP, track=False)
    main()

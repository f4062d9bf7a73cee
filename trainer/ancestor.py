"""What the process imports from which workers are forked (`workers`), and nobody else."""

import os

import trainer.build
import trainer.fit  # noqa: F401
from trainer.workers import die_with_parent

die_with_parent(os.getppid())

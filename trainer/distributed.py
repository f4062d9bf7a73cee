"""One training on several processes, of one machine or of many: started by torchrun, reported by its first process.

`launch` runs torchrun for a job and is all that the rest of Dalil sees; `main` is each of the processes. On several
machines every one of them launches the same job and names the first one's address.

When a process dies (out of memory, killed), torchrun ends the others and starts all of them again, and the training
goes on from its last checkpoint, at the very step. So the checkpoints must be where all machines see them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.errors import UserError, disk_errors
from trainer.workers import ATTEMPTS, Epoch, Job, Message, Outcome, die_with_parent, threads, train

PORT = 29500
NODE, ADDRESS = "DALIL_NODE", "DALIL_ADDRESS"
"""Environment: which of several machines this one is (from 0), and where the first is."""
AGENT = "--agent"
PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one."""


@dataclass(frozen=True)
class World:
    """The machines of one training, `node` being this one; each runs `processes`."""

    nodes: int = 1
    processes: int = 1
    node: int = 0
    address: str = ""

    @staticmethod
    def here(nodes: int, processes: int) -> "World":
        """The world as the environment says it: NODE and ADDRESS; without them this machine stands for all."""
        if ADDRESS not in os.environ:
            return World(processes=nodes * processes)
        return World(nodes, processes, int(os.environ[NODE]), os.environ[ADDRESS])

    @property
    def size(self) -> int:
        return self.nodes * self.processes


def launch(job: Job, world: World, say: Callable[[Message], None]) -> None:
    """Run the job's processes of this machine to their end. `say` hears of epochs and the outcome on the first machine.

    After a restart `say` hears again of the epochs before it; of the outcome it hears once.

    Raises:
        RuntimeError: processes ended with errors, which stand in the log, as often as is tried.
    """
    rendezvous = ["--standalone"]
    if world.nodes > 1:
        rendezvous = [f"--nnodes={world.nodes}", f"--node-rank={world.node}"]
        rendezvous += [f"--master-addr={world.address}", f"--master-port={PORT}"]
    rendezvous += [f"--nproc-per-node={world.processes}", f"--max-restarts={ATTEMPTS - 1}"]
    outcome: Outcome | None = None
    with TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(asdict(job), default=str))
        command = [*rendezvous, "-m", "trainer.distributed", str(file)]
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.distributed", AGENT, *command],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads(world.processes))},
        )
        assert process.stdout is not None
        for line in process.stdout:
            message = _parsed(line)
            if isinstance(message, Outcome):
                outcome = message
            elif message is not None:
                say(message)
            else:
                print(line, end="", file=sys.stderr)
        if process.wait() != 0:
            if not _reason(file).exists():
                raise RuntimeError(f"a process of {job.key} ended with exit code {process.returncode}")
            outcome = Outcome(job.key, None, error=_reason(file).read_text(), fatal=True)
    if outcome is not None:
        say(outcome)


def main(file: Path) -> None:
    """One process of a training; the first one prints its messages, a line of JSON each."""
    if _reason(file).exists():
        sys.exit(1)  # what ended the first attempt would end this one
    job = _job(json.loads(file.read_text()))
    try:
        with disk_errors(job.checkpoints):
            _train(job)
    except (UserError, OSError) as error:
        _reason(file).write_text(str(error))
        raise


def _train(job: Job) -> None:
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from trainer.device import device, take

    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    # The agent's store outlives an attempt, and with it the addresses of processes that are gone.
    attempt = PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    take(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world, timeout=PATIENCE)
    first = dist.get_rank() == 0

    def say(message: Message) -> None:
        if first:
            print(json.dumps({"message": type(message).__name__, **asdict(message)}), flush=True)

    say(train(job, say))
    dist.barrier()
    dist.destroy_process_group()


def _reason(file: Path) -> Path:
    """Where a process says why trying the job in `file` again is no use."""
    return file.with_suffix(".failed")


def _job(data: dict[str, Any]) -> Job:
    paths = {name: Path(data[name]) for name in ("dataset", "checkpoints", "weights") if data[name] is not None}
    return Job(**{**data, **paths, "thresholds": tuple(data["thresholds"])})


def _parsed(line: str) -> Message | None:
    try:
        data = json.loads(line)
        kind = data.pop("message")
    except (ValueError, KeyError, AttributeError):
        return None
    return Epoch(**data) if kind == "Epoch" else Outcome.from_json(json.dumps(data))


if __name__ == "__main__":
    die_with_parent(os.getppid())
    if sys.argv[1] == AGENT:
        from torch.distributed.run import main as torchrun

        torchrun(sys.argv[2:])
    else:
        main(Path(sys.argv[1]))

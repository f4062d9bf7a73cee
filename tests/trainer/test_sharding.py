"""Two gloo processes against one: the same losses for the same global batches, the same model at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def run(folder: Path, model: str, world: int) -> list[dict[str, Any]]:
    """Train with `world` processes; what each wrote, in order of rank."""
    folder.mkdir(exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.trainer.sharding_script", str(folder), model]
    processes = [
        subprocess.Popen([*command, str(rank), str(world)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=400)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(errors)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["small", "deepfm", "indexed", "sasrec", "routed"])
def test_two_processes_train_the_same_model_as_one(tmp_path: Path, model: str) -> None:
    [alone] = run(tmp_path / "one", model, 1)
    first, second = run(tmp_path / "two", model, 2)
    for rank in (first, second):
        np.testing.assert_allclose(rank["train"], alone["train"], rtol=1e-5)
        np.testing.assert_allclose(rank["valid"], alone["valid"], rtol=1e-5)
        np.testing.assert_allclose(rank["predictions"], alone["predictions"], atol=1e-5)
        assert rank["samples"] == alone["samples"]
    assert len(alone["predictions"]) == 101
    everywhere = set(first["tables"]) & set(second["tables"])
    assert sorted({*first["tables"], *second["tables"]}) == sorted(alone["tables"])
    if model in ("deepfm", "indexed", "routed"):  # their tables are trained lazily: each has one home
        assert everywhere == set()
        assert first["tables"] != []
        assert second["tables"] != []
    else:
        assert everywhere == set(alone["tables"])
    ours, expected = load_file(tmp_path / "two/weights.safetensors"), load_file(tmp_path / "one/weights.safetensors")
    assert ours.keys() == expected.keys()
    for name, weight in expected.items():
        parts = [weight, ours[name]]
        if name.endswith("qkv.bias"):
            # The keys' bias adds one number to all scores of a soft-max: its gradient is rounding that Adam scales up.
            parts = [torch.cat([query, value]) for query, _, value in (part.chunk(3) for part in parts)]
        torch.testing.assert_close(parts[1], parts[0], rtol=1e-3, atol=1e-4)

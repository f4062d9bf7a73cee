"""The quickstart as a newcomer runs it."""

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
SHOWN = "output.txt"


def run_quickstart(home: Path) -> str:
    """What `dalil run` shows of the quickstart in a home folder."""
    file = ROOT / "pipelines" / "gallery" / "quickstart.yaml"
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "run", str(file)],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def home_after_quickstart(folder: Path) -> Path:
    """A home in `folder` where the quickstart has been run, by the process that asks first; SHOWN is what it showed."""
    home = folder / "newcomer"
    with FileLock(folder / "newcomer.lock"):
        if not (home / SHOWN).exists():
            home.mkdir(exist_ok=True)
            shown = run_quickstart(home)
            (home / SHOWN).write_text(shown)
    return home

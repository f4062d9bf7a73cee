"""The process that brings tracking spools to MLflow: started with the run, outlives its steps, ends by itself."""

from pathlib import Path


def start(root: Path, uri: str | None) -> None:
    """Start shipping the spools of `root` (`runs/<pipeline>`), what earlier runs left behind included. Returns at once.

    `uri` None: MLFLOW_TRACKING_URI if set, otherwise `sqlite:///<runs>/mlflow.db` with artifacts in `<runs>/mlartifacts`.
    """
    raise NotImplementedError


def wait(root: Path, seconds: float) -> str | None:
    """Wait until everything is with MLflow. None: done. Otherwise one line that says why not; the rest goes with the next run."""
    raise NotImplementedError


def tracking_uri(root: Path, uri: str | None) -> str:
    """Where the records of `root` go (see `start`); for the hints at the end of a run."""
    raise NotImplementedError

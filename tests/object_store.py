"""An object store that speaks S3, for as long as a test needs it."""

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer


@contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """The environment in which s3:// means an empty store."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test"}
    environment |= {"AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        yield environment
    finally:
        server.stop()


@contextmanager
def s3_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """The files of an empty store, which s3:// means in this process too."""
    with object_store() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield fsspec.filesystem("s3")
        s3fs.S3FileSystem.clear_instance_cache()

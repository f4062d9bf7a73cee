"""Sources beyond the local disk, against a real S3 protocol server."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import s3fs

from components.dataset import DatasetSpec
from components.ingest import ingest
from components.source import beside, list_files, read_blocks
from tests.object_store import s3_files
from trainer.errors import UserError

ROWS = "a,y\n" + "".join(f"{k % 7},{k % 2}\n" for k in range(200))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    with s3_files(monkeypatch) as files:
        files.makedirs("logs", exist_ok=True)
        yield files


def test_reads_from_s3(s3: s3fs.S3FileSystem, tmp_path: Path) -> None:
    s3.pipe("logs/day/rows.csv", ROWS.encode())
    spec = DatasetSpec.model_validate({"source": "s3://logs/day/*.csv", "format": "csv", "label": {"column": "y"}})
    schema = ingest(spec, tmp_path / "out", lambda done, total, stage: None)
    assert sum(schema.rows.values()) == 200


def test_what_is_missing_on_s3_is_one_line(s3: s3fs.S3FileSystem) -> None:
    for url in ("s3://logs/rows.csv", "s3://other/rows.csv"):
        with pytest.raises(UserError, match="there is no such file"):
            list_files(url)


def test_s3_without_credentials(s3: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="no right to read it"):
        list_files("s3://logs/rows.csv")


def test_folders_list_the_files_of_the_format(tmp_path: Path) -> None:
    for name in ("combined_data_2.txt", "combined_data_1.txt.gz", "README", ".hidden"):
        (tmp_path / name).write_text("x")
    assert [Path(url).name for url in list_files(str(tmp_path), "combined_data_*")] == [
        "combined_data_1.txt.gz",
        "combined_data_2.txt",
    ]
    with pytest.raises(UserError, match=r"no file there matches '\*.parquet'"):
        list_files(str(tmp_path), "*.parquet")


def test_beside_keeps_the_scheme(tmp_path: Path) -> None:
    (tmp_path / "users.dat.gz").write_text("x")
    url = f"file://{tmp_path}/ratings.dat"
    assert beside(url, "users.dat", "users.dat.gz") == f"file://{tmp_path}/users.dat.gz"
    assert beside(url, "movies.dat") is None


def test_blocks_are_cut_alike_gzip_or_not(tmp_path: Path) -> None:
    import gzip

    content = bytes(range(256)) * 50
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed").write_bytes(gzip.compress(content))
    plain, packed = (list(read_blocks(str(tmp_path / name), 1000)) for name in ("plain", "packed"))
    assert plain == packed
    assert b"".join(plain) == content


def test_reads_over_http(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/rows.csv"
        assert b"".join(read_blocks(list_files(url)[0])) == ROWS.encode()
        with pytest.raises(UserError, match="there is no such file"):
            list_files(url.replace("rows", "none"))
        server.shutdown()

"""Results in a bucket: the same code through another file system (one in memory, in place of S3)."""

import json

import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from jaxsmooth.cli.report import read_source
from jaxsmooth.sweep import records
from tests.sweep.test_run import comparable, sweep

OUT = "s3://bucket/results"


class Bucket(MemoryFileSystem):
    """Names its files as S3's file system does: bucket/folder/name."""

    store, pseudo_dirs = {}, [""]
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("s3://"))

    def glob(self, path, **options):
        return [name.lstrip("/") for name in super().glob(path, **options)]


@pytest.fixture
def bucket(monkeypatch):
    from etils.epath import backend

    file_system = Bucket()
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: file_system)
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]
    yield file_system
    file_system.store.clear()


@pytest.mark.usefixtures("bucket")
def test_a_sweep_into_a_bucket_resumes_merges_and_reports(tmp_path):
    sweep(tmp_path / "r")
    sweep(OUT, indices=range(5))
    progress = sweep(OUT)
    assert (progress.resumed, progress.done) == (5, 12)
    assert comparable(OUT) == comparable(tmp_path / "r")
    assert read_source(OUT).num_examples == 12
    assert records.merge([OUT], "s3://bucket/merged") == 12
    assert comparable("s3://bucket/merged") == comparable(tmp_path / "r")


@pytest.mark.usefixtures("bucket")
def test_interrupted_in_a_bucket(tmp_path):
    def interrupt(progress, calls=[]):  # noqa: B006
        calls.append(progress)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(OUT, batch_size=8, on_update=interrupt)
    (partial,) = (epath.Path(OUT) / "partial").iterdir()
    assert json.loads(partial.read_text())["examples"]
    sweep(OUT)
    sweep(tmp_path / "r")
    assert comparable(OUT) == comparable(tmp_path / "r")


@pytest.mark.usefixtures("bucket")
def test_damage_in_a_bucket_is_set_aside():
    sweep(OUT)
    (part,) = (epath.Path(OUT) / "parts").iterdir()
    text = part.read_text()
    part.write_text(text[: len(text) // 2])
    with pytest.warns(UserWarning, match="is damaged"):
        sweep(OUT)
    assert len(comparable(OUT)) == 12

"""The results folder: atomic parts, merging, and every kind of damage."""

import dataclasses
import json

import pytest

from jaxsmooth import InputError, files
from jaxsmooth.sweep import records

DETERMINES = {
    "parameters": "abc",
    "model": "m",
    "data": {"name": "d", "split": "test", "fingerprint": "f", "num_classes": 3},
    "noise": {"name": "gaussian", "sigma": 0.25},
    "alpha": 0.001,
    "bound": "two-sided",
    "num_samples": 100,
    "selection_samples": 10,
    "seed": 0,
    "prng": "threefry2x32",
    "inference_dtype": "float32",
}
MANIFEST = records.Manifest(DETERMINES, {"command": ["x"]})


def row(index, **changes):
    values = records.Row(index, 1, 1, 0.1, 0.7, 0.3, {0: 10, 1: 90}, {1: 10}, 100, 10, 0.5)
    return dataclasses.replace(values, **changes)


@pytest.fixture
def folder(tmp_path):
    records.create(tmp_path / "results", MANIFEST)
    records.write_part(tmp_path / "results", "a-000000", [row(4), row(0)])
    records.write_part(tmp_path / "results", "b-000000", [row(2), row(4, label=2)])
    return tmp_path / "results"


def test_round_trip_is_exact():
    odd = row(3, radius=0.1 + 0.2, p_a_lower=1 / 3, prediction=-1)
    assert records.decode(records.encode(odd)) == odd


def test_reading_merges_sorts_and_keeps_one_row_per_example(folder):
    results = records.read_results(folder)
    assert [r.index for r in results.rows] == [0, 2, 4]
    assert results.rows[2].label == 1  # of the first part
    assert results.manifest == MANIFEST


def test_sparse_and_dense_are_inverse():
    assert records.dense(records.sparse([0, 5, 0, 2]), 4).tolist() == [0, 5, 0, 2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"index": 1, "lab', "not valid JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({**json.loads(records.encode(row(1))), "more": 1}), "unknown fields more"),
        (
            json.dumps({k: v for k, v in json.loads(records.encode(row(1))).items() if k != "radius"}),
            "lacks radius",
        ),
        (records.encode(row(1, counts={0: 101})), "sum to more than the 100"),
        (records.encode(row(1, counts={0: -1})), "negative"),
        (records.encode(row(1)).replace('"label": 1', '"label": "x"'), "wrong kind"),
        (records.encode(row(1)).replace('"label": 1', '"label": 1.5'), "wrong kind"),
    ],
)
def test_a_damaged_row_is_named_or_left_out(folder, line, said):
    path = folder / "parts" / "c-000000.jsonl"
    path.write_text(records.encode(row(7)) + "\n" + line + "\n")
    with pytest.raises(InputError, match=rf"c-000000.jsonl line 2 is damaged: .*{said}") as error:
        records.read_results(folder)
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="line 2 is damaged: .*set aside"):
        records.set_damaged_aside(folder)
    assert [r.index for r in records.read_results(folder).rows] == [0, 2, 4, 7]
    assert (folder / "parts" / "c-000000.jsonl.damaged").read_text().endswith(line + "\n")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other"}', '{"format": "jaxsmooth-results", "version": 99}',
                                  '{"format": "jaxsmooth-results", "version": 1}'])  # fmt: skip
def test_a_damaged_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest.json"):
        records.read_results(folder)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a results folder"):
        records.read_results(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        records.create(tmp_path, MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_run_is_refused_with_the_differences(folder):
    other = {**DETERMINES, "alpha": 0.01, "noise": {"name": "gaussian", "sigma": 0.5}}
    with pytest.raises(InputError, match=r"noise.sigma: 0.25 there, 0.5 now; alpha: 0.001 there, 0.01 now"):
        records.create(folder, records.Manifest(other, {}))


def test_a_write_that_fails_leaves_what_was_there(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        records.write_part(folder, "a-000000", [row(9)])
    assert [r.index for r in records.read_results(folder).rows] == [0, 2, 4]
    assert not list((folder / "parts").glob(".*"))

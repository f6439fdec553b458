import re
from fractions import Fraction

import numpy as np
import pytest

from jaxsmooth.sweep import cohen
from jaxsmooth.sweep.records import Row
from jaxsmooth.validation import InputError

HEADINGS = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
GOOD = HEADINGS + "0\t3\t3\t0.377\t1\t0:00:14.172309\n20\t8\t-1\t0.0\t0\t0:02:13\n40\t1\t7\t0.29\t0\t13.7\n"


def put(folder, text: str, name: str = "log.tsv"):
    path = folder / name
    path.write_text(text)
    return path


def test_reads_both_kinds_of_time(tmp_path):
    log = cohen.read(put(tmp_path, GOOD))
    assert log.index.tolist() == [0, 20, 40]
    assert log.label.tolist() == [3, 8, 1]
    assert log.prediction.tolist() == [3, -1, 7]
    assert log.radius.tolist() == [0.377, 0.0, 0.29]
    assert log.seconds.tolist() == [14.172309, 133.0, 13.7]
    assert log.sigma is None
    assert log.notes == ()


def test_trailing_lines_and_carriage_returns_are_harmless(tmp_path):
    path = tmp_path / "log"
    path.write_bytes((GOOD + "\n").replace("\n", "\r\n").encode())
    assert cohen.read(path).radius.tolist() == [0.377, 0.0, 0.29]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("60\t1\t1\t0.", "it has 4 of 6 columns (cut off?)"),
        ("60\t1\t1\t0.5\t1\t", "it has 5 of 6 columns (cut off?)"),
        ("60\t1\t1\t0.5\t1\t0:00:1", "time must be a finite number, at least 0, got '0:00:1'"),
        ("60\t1\t1\tnan\t1\t1.0", "radius must be a finite number, at least 0, got 'nan'"),
        ("60\t1\t1\t-0.5\t1\t1.0", "radius must be a finite number, at least 0, got '-0.5'"),
        ("60\t1\t-1\t0.5\t0\t1.0", "radius must be 0 on abstention, got 0.5"),
        ("60\t1\t-2\t0.5\t0\t1.0", "predict must be a whole number, at least -1, got '-2'"),
        ("60\t1.5\t1\t0.5\t0\t1.0", "label must be a whole number, at least 0, got '1.5'"),
        ("60\t1\t1\t0.5\tyes\t1.0", "correct must be 0 or 1, got 'yes'"),
        ("20\t1\t1\t0.5\t1\t1.0", "idx 20 is on line 3 already"),
    ],
)
def test_damaged_rows_are_refused_by_name(tmp_path, row, message):
    path = put(tmp_path, GOOD + row)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path} line 5 is damaged: {message}')}$"):
        cohen.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a certification log: its first line must be"),
        (b"idx,label\n", "is not a certification log: its first line must be"),
        (b"\x89PNG\xff\xfe", "is not a certification log: it is not text"),
        (HEADINGS.encode(), "holds no examples"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "log.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        cohen.read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="could not read"):
        cohen.read(tmp_path / "nothing.tsv")


def test_a_contradicting_column_is_noticed(tmp_path):
    log = cohen.read(put(tmp_path, HEADINGS + "0\t3\t3\t0.5\t1\t1\n1\t3\t4\t0.5\t1\t1\n2\t3\t3\t0.5\t0\t1\n"))
    assert log.notes == (
        "`correct` contradicts label and predict in 2 rows (first: line 3); label and predict are used",
    )


@pytest.mark.parametrize(
    ("name", "radius", "alpha"),
    [
        ("sigma_0.25", "0.953", None),  # 3.8115 sigma with the usual three digits
        ("log-sigma0.50.tsv", "1.91", None),
        ("sigma1.00.tsv", "3.8115", None),
        ("sigma_0.25", "0.978", "0.01"),  # 3.9105 sigma
        ("noise_0.50.tsv", "1.955", "0.01"),
        ("log.tsv", "3.911", None),  # an unknown sigma tells nothing
    ],
)
def test_another_alpha_is_noticed(tmp_path, name, radius, alpha):
    log = cohen.read(put(tmp_path, HEADINGS + f"0\t3\t3\t{radius}\t1\t1\n", name))
    assert [f"alpha was about {alpha}, or n larger" in note for note in log.notes] == [True] * (
        alpha is not None
    )


def test_written_radii_are_never_larger_and_read_back(tmp_path):
    rng = np.random.default_rng(0)
    radius = np.concatenate([rng.random(200) * 4, [0.29, 0.1 + 0.2, 1e-9, 5e-324, 0.0]])
    prediction = np.where(radius > 0, rng.integers(0, 3, radius.size), -1)
    rows = [
        Row(7 * i, int(rng.integers(0, 3)), int(p), float(r), 0.5, 0.5, {}, {}, 100, 100, 3725.5)
        for i, (p, r) in enumerate(zip(prediction, radius, strict=True))
    ]
    log = cohen.from_rows(rows)
    back = cohen.read(put(tmp_path, cohen.encode(log)))
    assert back.notes == ()
    for name in ("index", "label", "prediction", "seconds"):
        np.testing.assert_array_equal(getattr(back, name), getattr(log, name))
    assert np.all(back.radius <= radius)
    assert np.all(back.radius > radius - 1.0000001e-6)
    assert back.radius[200] == 0.29
    # What the text says, as a decimal number, is not larger either (0.29 itself is the name of its float).
    for line, row in list(zip(cohen.encode(log).splitlines()[1:], rows, strict=True))[:200]:
        assert Fraction(line.split("\t")[3]) <= Fraction(row.radius)
    assert cohen.encode(back) == cohen.encode(log)


def test_format_by_hand():
    rows = [Row(20, 4, 4, 0.1234567, 0.9, 0.1, {4: 99}, {4: 10}, 100, 10, 13.7)]
    rows += [Row(40, 4, -1, 0.0, 0.4, 0.6, {4: 50}, {4: 5}, 100, 10, 100_000.0)]
    assert cohen.encode(cohen.from_rows(rows)) == (
        HEADINGS + "20\t4\t4\t0.123456\t1\t0:00:13.700\n40\t4\t-1\t0.000000\t0\t27:46:40.000\n"
    )


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("sigma_0.25", 0.25),
        ("noise_0.50-sigma_1.00.tsv", 1.0),
        ("sigma=2", 2.0),
        ("sigma_0", None),
        ("a.tsv", None),
    ],
)
def test_sigma_in_name(name, sigma):
    assert cohen.sigma_in_name(name) == sigma

import csv
import dataclasses
import io
import os
import re
from pathlib import Path

import pytest
import tyro

from jaxsmooth.cli.report import Report, run
from jaxsmooth.sweep import records
from jaxsmooth.sweep.recertify import recertify
from jaxsmooth.validation import InputError

HEADINGS = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
LOG = HEADINGS + "0\t0\t0\t0.30\t1\t0:00:14.1\n1\t0\t-1\t0.0\t0\t2\n2\t0\t1\t0.9\t0\t2\n"

PUBLISHED = Path(
    os.environ.get(
        "JAXSMOOTH_CERTIFY_LOGS", Path(__file__).parents[3] / "shared" / "reference" / "certify-logs"
    )
)
# Published logs at alpha = .001 (Salman et al. 2019), summed up elsewhere, with three digits to nearest.
PUBLISHED_RADII = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3)
PUBLISHED_TABLE = {
    "cifar10-resnet110-gaussian-sigma0.25": (".766 .612 .422 .251", ".424", ".080"),
    "cifar10-resnet110-gaussian-sigma0.50": (".657 .549 .428 .325 .220 .083", ".525", ".152"),
    "imagenet-resnet50-gaussian-sigma0.25": (".656 .568 .488 .412", ".472", ".054"),
    "imagenet-resnet50-gaussian-sigma0.50": (".590 .538 .480 .434 .390 .274", ".742", ".154"),
    "imagenet-resnet50-gaussian-sigma1.00": (".432 .408 .376 .346 .310 .240 .206 .144 .108", ".840", ".278"),
}
needs_published_logs = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published logs")


def report(capsys, *arguments: object) -> tuple[str, str]:
    """What the command prints to stdout and stderr."""
    run(tyro.cli(Report, args=[str(argument) for argument in arguments]))
    return capsys.readouterr()


def cells(text: str) -> list[dict[str, str]]:
    """The rows of a table in Markdown."""
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def make_folder(path: Path, num_examples: int | None = None) -> Path:
    """Three examples of class 0: right, abstained, wrong; n = 1000, sigma 0.5."""
    determines = {
        "data": {"name": "made up", "num_classes": 2},
        "noise": {"name": "gaussian", "sigma": 0.5},
        "alpha": 0.001,
        "bound": "one-sided",
        "num_samples": 1000,
        "selection_samples": 10,
    }
    manifest = records.Manifest(determines, {} if num_examples is None else {"num_examples": num_examples})
    counts = [{0: 990, 1: 10}, {0: 520, 1: 480}, {1: 1000}]
    rows = [
        records.Row(i, 0, -1, 0.0, 0.0, 1.0, count, {max(count, key=lambda c: count[c]): 10}, 1000, 10, 1.5)
        for i, count in enumerate(counts)
    ]
    records.create(path, manifest)
    records.write_part(path, "0", recertify(records.Results(manifest, rows)).rows)
    return path


def make_log(path: Path, text: str = LOG) -> Path:
    path.write_text(text)
    return path


@needs_published_logs
def test_the_published_table_to_the_last_digit(capsys):
    paths = sorted(PUBLISHED.glob("*.tsv"))
    out, err = report(capsys, *paths, "--radii", *PUBLISHED_RADII, "--digits", 3, "--rounding", "nearest")
    rows = cells(out)
    assert [row["source"] for row in rows] == list(PUBLISHED_TABLE)
    for row in rows:
        accuracies, radius, abstained = PUBLISHED_TABLE[row["source"]]
        expected = [f"0{cell}" for cell in accuracies.split()]
        expected += ["0"] * (len(PUBLISHED_RADII) - len(expected))
        assert [row[f"r={r:g}"] for r in PUBLISHED_RADII] == expected
        assert (row["ACR"], row["abstain"]) == (f"0{radius}", f"0{abstained}")
    assert "rounded to nearest" in err
    assert "different examples" in err
    assert "alpha" not in err


@needs_published_logs
def test_published_logs_rounded_down_by_default(capsys):
    """Against a plain loop over the lines; four digits are the published three, and one more."""
    for path in sorted(PUBLISHED.glob("*.tsv")):
        (row,) = cells(report(capsys, path, "--radii", *PUBLISHED_RADII)[0])
        lines = list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
        for r, published in zip(PUBLISHED_RADII, PUBLISHED_TABLE[path.stem][0].split(), strict=False):
            count = sum(line["label"] == line["predict"] and float(line["radius"]) >= r for line in lines)
            assert row[f"r={r:g}"] == f"0.{10_000 * count // len(lines):04d}"
            assert abs(float(row[f"r={r:g}"]) - float(published)) <= 0.0005 + 1e-12


def test_a_folder_by_hand(capsys, tmp_path):
    """mpmath: L(990, 1000, .001) = .9760361871..., .5 Phi^-1(that) = .98900479...; SciPy: L(520, 1000) = .470674..."""
    out, err = report(capsys, make_folder(tmp_path / "run"), "--radii", 0, 0.5, 1)
    (row,) = cells(out)
    assert row == {
        "source": "run",
        "sigma": "0.5",
        "n": "1000",
        "alpha": "0.001",
        "bound": "one-sided",
        "examples": "3",
        "r=0": "0.3333",
        "r=0.5": "0.3333",
        "r=1": "0",
        "ACR": "0.3296",
        "abstain": "0.3334",
        "p_A 10%": "0.47067",
        "p_A 50%": "0.97603",
        "p_A 90%": "0.97603",
    }
    assert err.splitlines() == [
        "note: 95% confidence over the examples, at all radii at once: accuracy +- 0.7842 (3 examples)",
        "1 source, 3 examples",
    ]


def test_certifying_again(capsys, tmp_path):
    """520 of 1000 heads: a one-sided lower bound of more than a half needs alpha of about .11 or more."""
    out, err = report(capsys, make_folder(tmp_path / "run"), "--alpha", 0.2, "--bound", "one-sided")
    (row,) = cells(out)
    assert (row["alpha"], row["bound"], row["r=0"], row["abstain"]) == (
        "0.2",
        "one-sided",
        "0.6666",
        "0.0000",
    )
    assert "certified again from the stored counts" in err
    (row,) = cells(report(capsys, tmp_path / "run", "--bound", "two-sided")[0])
    assert (row["alpha"], row["bound"], row["abstain"]) == ("0.001", "two-sided", "0.3334")


def test_comparing_what_differs_is_noted(capsys, tmp_path):
    folder = make_folder(tmp_path / "run", num_examples=10)
    out, err = report(capsys, folder, make_log(tmp_path / "log.tsv"))
    assert [row["source"] for row in cells(out)] == ["run", "log"]
    notes = err.splitlines()
    assert "note: run: holds 3 of 10 examples so far" in notes
    assert "note: alpha differs: 0.001 (run), not recorded (log)" in notes
    assert not any("different examples" in note for note in notes)
    assert notes[-1] == "2 sources, 6 examples"


def test_a_row_that_claims_too_much_is_noted(capsys, tmp_path):
    folder = make_folder(tmp_path / "run")
    rows = records.read_results(folder).rows
    records.write_part(folder, "0", [dataclasses.replace(rows[0], radius=2.0), *rows[1:]])
    assert "run: 1 rows claim more than their counts support (first: index 0)" in report(capsys, folder)[1]
    out, err = report(capsys, folder, "--alpha", 0.001)
    assert "claim more" not in err
    assert cells(out)[0]["ACR"] == "0.3296"


def test_cohen_tsv_of_a_folder_reads_back_the_same(capsys, tmp_path):
    folder = make_folder(tmp_path / "run")
    out, err = report(capsys, folder, "--format", "cohen-tsv", "--out", tmp_path / "sigma_0.5.tsv")
    assert out == ""
    assert err.splitlines()[-1] == f"1 source, 3 examples; wrote {tmp_path / 'sigma_0.5.tsv'}"
    lines = list(csv.DictReader((tmp_path / "sigma_0.5.tsv").read_text().splitlines(), delimiter="\t"))
    assert [(line["idx"], line["predict"], line["correct"]) for line in lines] == [
        ("0", "0", "1"),
        ("1", "-1", "0"),
        ("2", "1", "0"),
    ]
    assert lines[0]["radius"] == "0.989004"
    assert lines[0]["time"] == "0:00:01.500"
    (row,) = cells(report(capsys, tmp_path / "sigma_0.5.tsv")[0])
    assert (row["sigma"], row["r=0"], row["abstain"]) == ("0.5", "0.3333", "0.3334")


def test_csv_and_latex(capsys, tmp_path):
    log = make_log(tmp_path / "a_log.tsv")
    (row,) = csv.DictReader(io.StringIO(report(capsys, log, "--format", "csv", "--radii", 0.3)[0]))
    assert (row["r=0.3"], row["ACR"], row["abstain"]) == ("0.333333333", "0.100000000", "0.333333334")
    assert r"a\_log & 3 &" in report(capsys, log, "--format", "latex")[0]


def test_a_picture(capsys, tmp_path):
    picture = tmp_path / "curve.png"
    _, err = report(capsys, make_folder(tmp_path / "run"), make_log(tmp_path / "log.tsv"), "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert err.splitlines()[-1] == f"2 sources, 6 examples; wrote {picture}"


def test_equal_names_are_told_apart(capsys, tmp_path):
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths.append(make_log(tmp_path / name / "sigma_0.25"))
    assert [row["source"] for row in cells(report(capsys, *paths)[0])] == [str(path) for path in paths]


def test_refusals(capsys, tmp_path):
    folder, log = make_folder(tmp_path / "run"), make_log(tmp_path / "log.tsv")
    there = tmp_path / "there.png"
    there.write_text("precious")
    logs_only = tmp_path / "logs"
    logs_only.mkdir()
    make_log(logs_only / "log.tsv")
    empty = tmp_path / "empty"
    records.create(empty, records.read_manifest(folder))
    bad_manifest = tmp_path / "bad"
    records.create(bad_manifest, records.Manifest({"alpha": 0.001}, {}))
    records.write_part(bad_manifest, "0", records.read_results(folder).rows)
    cases = [
        ([], "PATH must be given at least once: results folders or logs"),
        (
            [tmp_path / "no"],
            f"PATH must be a results folder or a log, got {tmp_path / 'no'}, which is not there",
        ),
        ([logs_only], f"{logs_only} is not a results folder: it has no manifest.json"),
        ([empty], f"{empty}: it holds no examples yet"),
        ([bad_manifest], f"{bad_manifest}: the manifest is damaged: it lacks determines.bound"),
        ([log, "--alpha", 0.01], f"alpha 0.01 needs stored counts, and {log} is a log, which holds none"),
        (
            [log, "--bound", "one-sided"],
            f"bound one-sided needs stored counts, and {log} is a log, which holds none",
        ),
        ([folder, "--alpha", 1.5], "alpha must lie in (0, 1), got 1.5"),
        ([folder, "--radii", "0", "-1"], "radii must be at least 0, got -1.0"),
        ([folder, "--radii", "nan"], "radii must be finite, got nan"),
        ([folder, "--digits", 0], "digits must be at least 1, got 0"),
        ([folder, log, "--format", "cohen-tsv"], "format cohen-tsv takes one PATH, got 2"),
        (
            [folder, "--plot", tmp_path / "a.gif"],
            f"plot must end in .png, .pdf, .svg, got {tmp_path / 'a.gif'}",
        ),
        ([folder, "--plot", there], f"plot must be a new file, got {there}, which is there already"),
        (
            [folder, "--out", tmp_path / "no" / "a.md"],
            f"out must lie in a folder that is there, got {tmp_path / 'no' / 'a.md'}",
        ),
        ([folder, "--out", there], f"out must be a new file, got {there}, which is there already"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            report(capsys, *arguments)
        assert capsys.readouterr().out == ""
    assert there.read_text() == "precious"


def test_a_damaged_row_is_named(capsys, tmp_path):
    folder = make_folder(tmp_path / "run")
    part = folder / "parts" / "0.jsonl"
    part.write_text(part.read_text()[:-20])
    with pytest.raises(InputError, match=r"0\.jsonl line 3 is damaged: it is not valid JSON"):
        report(capsys, folder)


def make_early_folder(path: Path, **change: object) -> Path:
    """Tested at 0.25 and 0.5 with sigma 0.5: both, the first, none (undecided), and left at its selection stage."""
    determines = {
        "data": {"name": "made up", "num_classes": 2},
        "noise": {"name": "gaussian", "sigma": 0.5},
        "alpha": 0.001,
        "bound": "one-sided",
        "num_samples": 1000,
        "selection_samples": 10,
        "stopping": {"rule": "radii", "radii": [0.25, 0.5], "guarantee": "each", "plan": "0"},
        "only_correct": True,
        **change,
    }

    def decision(radius, verdict, num_samples, count):
        return records.Decision(radius, verdict, num_samples, {0: count, 1: num_samples - count})

    both = (decision(0.25, "certified", 60, 60), decision(0.5, "certified", 60, 60))
    first = (decision(0.25, "certified", 60, 58), decision(0.5, "not certified", 100, 85))
    none = (decision(0.25, "undecided", 1000, 700), decision(0.5, "not certified", 60, 40))
    rows = [
        records.Row(0, 0, 0, 0.5, 0.0, 1.0, {0: 60}, {0: 10}, 60, 10, 1.0, both),
        records.Row(1, 0, 0, 0.25, 0.0, 1.0, {0: 85, 1: 15}, {0: 10}, 100, 10, 1.0, first),
        records.Row(2, 0, -1, 0.0, 0.0, 1.0, {0: 700, 1: 300}, {0: 10}, 1000, 10, 1.0, none),
        records.Row(3, 1, -1, 0.0, 0.0, 1.0, {}, {0: 10}, 0, 10, 1.0),
    ]
    records.create(path, records.Manifest(determines, {}))
    records.write_part(path, "0", rows)
    return path


def test_tested_radii_are_all_that_is_known(capsys, tmp_path):
    early, fixed = make_early_folder(tmp_path / "early"), make_folder(tmp_path / "fixed")
    out, err = report(capsys, early, fixed, "--radii", 0, 0.25, 0.5)
    rows = {row["source"]: row for row in cells(out)}
    assert [rows["early"][f"r={r}"] for r in ("0", "0.25", "0.5")] == ["", "0.5000", "0.2500"]
    assert all(rows["fixed"][f"r={r}"] for r in ("0", "0.25", "0.5"))
    assert [rows["early"][name] for name in ("ACR", "abstain", "p_A 50%")] == ["", "", ""]
    assert (rows["early"]["stopping"], rows["fixed"]["stopping"]) == ("radii (each)", "")
    assert (rows["early"]["samples"], rows["fixed"]["samples"]) == ("300", "1010")
    assert "stopping differs: radii (each) (early), none (fixed)" in err
    assert "undecided with all 1000 samples, counted as not certified: 1 at r=0.25" in err
    assert "1 of 4 examples were left at a selection stage" in err
    assert "claim more" not in err


def test_default_radii_are_those_tested(capsys, tmp_path):
    out, _ = report(capsys, make_early_folder(tmp_path / "early"))
    assert [name for name in cells(out)[0] if name.startswith("r=")] == ["r=0.25", "r=0.5"]


def test_picture_of_tested_radii(capsys, tmp_path):
    report(capsys, make_early_folder(tmp_path / "early"), "--plot", tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--radii", 0.3], "radii must be among those tested in early, 0.25, 0.5, got 0.3"),
        (["--alpha", 0.01], r"examples that stopped early \(by radii \(each\)\) cannot be certified again"),
        (["--bound", "two-sided"], "cannot be certified again"),
        (
            ["--format", "cohen-tsv"],
            "needs the radius of every example, and early was tested at 0.25, 0.5 only",
        ),
    ],
)
def test_what_early_rows_cannot_answer(capsys, tmp_path, arguments, said):
    early = make_early_folder(tmp_path / "early")
    with pytest.raises(InputError, match=said):
        report(capsys, early, *arguments)


def test_decisions_that_claim_too_much_are_noticed(capsys, tmp_path):
    early = make_early_folder(tmp_path / "early")
    part = early / "parts" / "0.jsonl"
    part.write_text(part.read_text().replace('{"0": 58, "1": 2}', '{"0": 48, "1": 12}'))
    _, err = report(capsys, early)
    assert "1 rows claim more than their counts support (first: index 1)" in err


def test_classes_without_a_decision_are_noticed(capsys, tmp_path):
    early = make_early_folder(tmp_path / "early")
    part = early / "parts" / "0.jsonl"
    lines = part.read_text().splitlines()
    for place, label in ((2, 0), (3, 0)):  # undecided, and left at its selection stage
        assert '"prediction": -1' in lines[place]
        lines[place] = lines[place].replace('"prediction": -1', f'"prediction": {label}')
    part.write_text("\n".join(lines) + "\n")
    _, err = report(capsys, early)
    assert "2 rows claim more than their counts support (first: index 2)" in err


def test_examples_left_at_their_selection_stage_support_nothing(capsys, tmp_path):
    results = records.read_results(make_folder(tmp_path / "r"))
    determines = {**results.manifest.determines, "only_correct": True}
    left = dataclasses.replace(results.rows[0], counts={}, num_samples=0)  # still with its radius
    records.create(tmp_path / "left", records.Manifest(determines, {}))
    records.write_part(tmp_path / "left", "0", [left, *results.rows[1:]])
    _, err = report(capsys, tmp_path / "left")
    assert "1 rows claim more than their counts support (first: index 0)" in err


def test_no_samples_are_a_mistake_unless_only_the_correct_were_sampled(tmp_path):
    results = records.read_results(make_folder(tmp_path / "r"))
    left = dataclasses.replace(results.rows[0], counts={}, num_samples=0)
    with pytest.raises(InputError, match="num_samples must be at least 1, got 0"):
        recertify(records.Results(results.manifest, [left]))


def test_an_unknown_rule_is_refused(capsys, tmp_path):
    early = make_early_folder(tmp_path / "early", stopping={"rule": "oracle"})
    with pytest.raises(InputError, match="does not know"):
        report(capsys, early)


def test_only_correct_with_a_fixed_number_can_be_certified_again(capsys, tmp_path):
    folder = make_folder(tmp_path / "r")
    results = records.read_results(folder)
    determines = {**results.manifest.determines, "only_correct": True}
    claims = {"prediction": -1, "radius": 0.0, "p_a_lower": 0.0, "p_b_upper": 1.0}
    left = dataclasses.replace(results.rows[2], counts={}, num_samples=0, **claims)
    made = records.Results(records.Manifest(determines, {}), [*results.rows[:2], left])
    again = recertify(made, alpha=0.01)
    assert [row.num_samples for row in again.rows] == [1000, 1000, 0]
    assert again.rows[0].radius > results.rows[0].radius
    assert again.rows[2] == left


def test_selection_free_counts_cannot_be_split(tmp_path):
    results = records.read_results(make_folder(tmp_path / "r"))
    free = recertify(results, bound="selection-free")
    assert [row.prediction for row in free.rows] == [row.prediction for row in results.rows]
    with pytest.raises(InputError, match="bound 'one-sided' needs counts of a selection stage"):
        recertify(free, bound="one-sided")

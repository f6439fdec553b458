"""The commands as a person calls them: output, exit codes, one line for every mistake."""

import json
import warnings

import pytest

from jaxsmooth.cli.main import COMMANDS, main
from jaxsmooth.sweep import records


def call(capsys, *arguments):
    """Exit code, stdout and stderr of one call."""
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "checkpoint"
    main(["train", "--out", str(out), "--epochs", "2"])
    return out


@pytest.fixture(scope="module")
def results(checkpoint):
    out = checkpoint.parent / "results"
    main(
        ["certify", "--checkpoint", str(checkpoint), "--out", str(out), "--num-samples", "300", "--max", "6"]
    )
    return out


def test_overview_names_every_command(capsys):
    code, out, _ = call(capsys)
    assert code == 0
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"jaxsmooth {command}" in out
    assert out.count("--") > 1


def test_certify_writes_the_folder_and_one_closing_line(capsys, checkpoint, results):
    rows = records.read_results(results).rows
    assert [row.index for row in rows] == list(range(6))
    code, out, _ = call(
        capsys, "certify", "--checkpoint", checkpoint, "--out", results, "--num-samples", 300, "--max", 6
    )
    assert code == 0
    assert out.startswith("all 6 examples were certified already")


def test_predict_prints_one_line_per_example(capsys, checkpoint, tmp_path):
    code, out, err = call(
        capsys, "predict", "--checkpoint", checkpoint, "--indices", 3, 5, "--num-samples", 200
    )
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["idx", "label", "predict", "correct"]
    assert [line[0] for line in lines[1:]] == ["3", "5"]
    assert "predicted 2 examples" in err
    call(
        capsys,
        "predict",
        "--checkpoint",
        checkpoint,
        "--indices",
        3,
        5,
        "--num-samples",
        200,
        "--out",
        tmp_path / "p",
    )
    assert (tmp_path / "p").read_text() == out


def test_a_config_file_fills_options_and_the_command_line_wins(capsys, checkpoint, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        f'[train]\nout = "unused"\n[certify]\ncheckpoint = "{checkpoint}"\nnum_samples = 150\nmax = 3\nalpha = 0.01\n'
    )
    code, _, _ = call(capsys, "certify", config, "--out", tmp_path / "r", "--max", 2)
    assert code == 0
    results = records.read_results(tmp_path / "r")
    assert len(results.rows) == 2
    assert results.manifest.determines["num_samples"] == 150
    assert results.manifest.determines["alpha"] == 0.01


def test_shipped_experiments_parse():
    import pathlib

    from jaxsmooth.cli import certify, configuration, train

    files = sorted(pathlib.Path("experiments").glob("*/*.toml"))
    assert files
    for file in files:
        assert configuration.parse(train.Train, [str(file)], "jaxsmooth train").out
        assert configuration.parse(certify.Certify, [str(file)], "jaxsmooth certify").out


def test_too_few_samples_warn_with_the_smallest_number(capsys, checkpoint, tmp_path):
    options = ["--checkpoint", checkpoint, "--out", tmp_path / "r", "--num-samples", 5, "--max", 1]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = call(capsys, "certify", *options)
    assert code == 0
    (line,) = [line for line in err.splitlines() if "everything abstains" in line]
    assert "at least 10 samples are needed" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dance"], "command must be one of demo, prepare, train"),
        (["certify", "--alpha", "1.5"], "alpha must lie in (0, 1), got 1.5"),
        (["certify", "--alpha", "x"], "--alpha"),
        (["certify", "--sigma", "-1"], "sigma must be positive and finite, got -1.0"),
        (["certify", "--sigma", "nan"], "sigma must be positive and finite, got nan"),
        (["certify", "--num-samples", "0"], "num_samples must be at least 1, got 0"),
        (["certify", "--selection-samples", "0"], "selection_samples must be at least 1, got 0"),
        (["certify", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (
            ["certify", "--bound", "best"],
            "bound must be one of 'two-sided', 'one-sided', 'selection-free', got 'best'",
        ),
        (["certify", "--radius", "0"], "radius must be positive and finite, got 0.0"),
        (["certify", "--radius", "nan"], "radius must be positive and finite, got nan"),
        (["certify", "--radius", "2"], "radius must be at most 0.952"),
        (["certify", "--radii", "0.25", "0.25"], "radii must increase, each given once, got [0.25, 0.25]"),
        (["certify", "--radii", "0.25", "--radius", "0.5"], "radius must not be given together with radii"),
        (["certify", "--radius", "0.25", "--bound", "two-sided"], "bound must be 'one-sided' with radii"),
        (
            ["certify", "--radii", "0.1", "0.2", "--guarantee", "all"],
            "guarantee must be one of 'each', 'simultaneous'",
        ),
        (["certify", "--tolerance", "1"], "tolerance must lie in (0, 1), got 1.0"),
        (
            ["certify", "--tolerance", "0.1", "--radius", "0.5"],
            "radii must not be given together with tolerance",
        ),
        (["certify", "--only-correct", "--bound", "selection-free"], "only_correct needs a selection stage"),
        (["certify", "--data", "mnist9"], "data must be one of 'cifar10', 'cifar100', 'digits', "),
        (
            ["certify", "--data", "svhn", "--data-dir", "nowhere"],
            "`jaxsmooth prepare svhn --data-dir nowhere`",
        ),
        (["certify", "--split", "val"], "split must be one of"),
        (["certify", "--indices", "500"], "indices must lie in 0..499"),
        (["certify", "--skip", "0"], "skip must be at least 1, got 0"),
        (["certify", "--max", "0"], "max must be at least 1, got 0"),
        (["certify", "--num-devices", "99"], "num_devices must be at most"),
        (["certify", "--checkpoint-every", "0"], "checkpoint_every must be positive"),
        (["certify", "--no-such-option"], "--no-such-option"),
        (
            ["certify", "--checkpoint", "nowhere"],
            "checkpoint must be a folder made by `jaxsmooth train`, got nowhere",
        ),
        (["certify", "absent.toml"], "config must be a file that can be read, got absent.toml"),
        (["predict", "--alpha", "0"], "alpha must lie in (0, 1), got 0.0"),
        (["predict", "--num-samples", "0"], "num_samples must be at least 1, got 0"),
        (["predict", "--checkpoint", "nowhere"], "checkpoint must be a folder"),
        (["train"], "--out"),
        (["train", "--out", "DIR", "--sigma", "0"], "sigma must be positive and finite, got 0.0"),
        (["train", "--out", "DIR", "--data", "faces"], "got 'faces'"),
        (["train", "--out", "DIR", "--model", "vgg"], "model must be one of"),
    ],
)
def test_every_mistake_is_one_line_and_exit_code_2(capsys, checkpoint, tmp_path, arguments, said):
    arguments = [str(tmp_path / "made") if a == "DIR" else a for a in arguments]
    if arguments[0] in ("certify", "predict") and "--checkpoint" not in arguments:
        arguments += ["--checkpoint", str(checkpoint)]
    if arguments[0] == "certify":
        arguments += ["--out", str(tmp_path / "made")]
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("jaxsmooth")
    assert said in err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[certify]\nalhpa = 0.1\n", "unknown key 'alhpa' in [certify]"),
        ("[cretify]\nalpha = 0.1\n", "unknown key 'cretify'"),
        ("alpha = 0.1\n", "unknown key 'alpha'"),
        ("[train]\nsigma = 0.1\n", "has no table [certify]"),
        ("[certify\n", "is not valid TOML"),
    ],
)
def test_config_files_with_mistakes(capsys, tmp_path, text, said):
    (tmp_path / "c.toml").write_text(text)
    code, _, err = call(capsys, "certify", tmp_path / "c.toml")
    assert code == 2
    assert err.count("\n") == 1
    assert said in err


def test_early_stopping_from_command_to_report(capsys, checkpoint, tmp_path):
    certify = ["certify", "--checkpoint", checkpoint, "--num-samples", 2000, "--max", 8]
    code, out, _ = call(capsys, *certify, "--radii", 0.1, 0.3, "--only-correct", "--out", tmp_path / "radii")
    assert code == 0
    assert out.startswith("certified 8 examples")
    code, _, err = call(capsys, *certify, "--radii", 0.1, 0.4, "--only-correct", "--out", tmp_path / "radii")
    assert code == 2
    assert "stopping.radii: [0.1, 0.3] there, [0.1, 0.4] now" in err
    code, _, _ = call(capsys, *certify, "--tolerance", 0.1, "--out", tmp_path / "tolerance")
    assert code == 0
    code, out, err = call(capsys, "report", tmp_path / "radii", tmp_path / "tolerance")
    assert code == 0
    assert "r=0.1" in out
    assert "r=0.3" in out
    assert "stopping differs: radii (each) (radii), tolerance 0.1 (tolerance)" in err
    code, _, err = call(capsys, "report", tmp_path / "radii", "--radii", 0.2)
    assert code == 2
    assert "radii must be among those tested in radii, 0.1, 0.3, got 0.2" in err
    code, _, err = call(capsys, "report", tmp_path / "tolerance", "--alpha", 0.01)
    assert code == 2
    assert "cannot be certified again" in err


def test_predict_stops_early(capsys, checkpoint):
    predict = ["predict", "--checkpoint", checkpoint, "--max", 6, "--num-samples", 2000]
    code, out, err = call(capsys, *predict, "--stop-early")
    assert code == 0
    _, fixed, _ = call(capsys, *predict)
    assert len(out.splitlines()) == len(fixed.splitlines()) == 7
    assert int(err.split("abstained; ")[1].split(" samples")[0].replace(",", "")) < 6 * 2000


def test_outputs_that_hold_something_else_are_left_alone(capsys, checkpoint, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for arguments in (
        ["certify", "--checkpoint", checkpoint, "--out", tmp_path],
        ["train", "--out", tmp_path],
        ["demo", "--out", tmp_path],
        ["predict", "--checkpoint", checkpoint, "--out", tmp_path / "thesis.tex"],
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_damaged_results_folder_names_the_row(capsys, results, tmp_path):
    import shutil

    shutil.copytree(results, tmp_path / "r")
    (part,) = (tmp_path / "r" / "parts").iterdir()
    lines = part.read_text().splitlines()
    part.write_text(
        "\n".join([*lines[:2], json.dumps({**json.loads(lines[2]), "counts": {"0": 10**6}}), *lines[3:]])
    )
    code, _, err = call(capsys, "report", tmp_path / "r")
    assert code == 2
    assert "line 3 is damaged" in err


@pytest.mark.slow
def test_demo_does_everything_and_twice_uses_what_is_there(capsys, tmp_path):
    code, out, _ = call(capsys, "demo", "--out", tmp_path / "demo")
    assert code == 0
    assert (tmp_path / "demo" / "curve.png").stat().st_size > 20_000
    rows = records.read_results(tmp_path / "demo" / "results").rows
    assert len(rows) == 250
    assert sum(row.correct for row in rows) > 230
    assert "where things are" in out
    code, again, _ = call(capsys, "demo", "--out", tmp_path / "demo")
    assert code == 0
    table = [line for line in out.splitlines() if line.startswith("| results")]
    assert table == [line for line in again.splitlines() if line.startswith("| results")] != []

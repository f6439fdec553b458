"""``jaxsmooth models``."""

import pytest

from jaxsmooth.cli.main import main


def test_table_has_aligned_columns(capsys):
    main(["models", "--names", "lenet", "resnet50"])
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "parameters", "GFLOP/sample", "input", "classes", "origin"]
    assert cells[2][:5] == ["lenet", "431,080", "0.0046", "28x28x1", "10"]
    assert cells[3][:5] == ["resnet50", "25,557,032", "8.1784", "224x224x3", "1000"]


def test_unknown_name(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["models", "--names", "resnet9000"])
    assert stop.value.code == 2
    assert "names must be one of 'cifar-densenet40'" in capsys.readouterr().err

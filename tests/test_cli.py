import sys

import pytest

from lorakit.cli import main


def test_energy_run_passes_the_commands_status_and_output_through(capfd):
    assert main(["energy", "run", "--", sys.executable, "-c", "print('out'); raise SystemExit(7)"]) == 7
    printed = capfd.readouterr()
    assert printed.out == "out\n"
    assert "energy over" in printed.err


def test_energy_doctor_names_every_component(capsys):
    assert main(["energy", "doctor", "--seconds", "0.1"]) in (0, 1)  # 1 where nothing can be measured
    lines = capsys.readouterr().out.splitlines()
    assert {"GPU", "CPU", "RAM"} <= {line.split()[0] for line in lines if line.strip()}


def test_help_has_examples_and_no_subcommand_is_an_error(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "lorakit energy run -- python train.py" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([])

import os
import subprocess
import sys

import pytest

from lorakit.cli.__main__ import main


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


def completions(line, tmp_path):
    """What a shell would offer at the end of a line, by argcomplete's own protocol."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "offered")
    code = "import sys; from lorakit.cli.__main__ import main; main(); sys.exit('not ended by argcomplete')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in (tmp_path / "offered").read_text().splitlines()}


def test_a_shell_can_complete_commands_flags_and_choices(tmp_path):
    pytest.importorskip("argcomplete")
    assert completions("lorakit p", tmp_path) == {"params", "predict"}
    assert completions("lorakit energy run --co", tmp_path) == {"--co2", "--config"}
    assert completions("lorakit train --precision b", tmp_path) == {"bf16"}

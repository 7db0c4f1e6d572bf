import errno
import os
import subprocess
import sys
import warnings
from io import BytesIO, TextIOWrapper

import pytest

import lorakit
from lorakit.cli import data
from lorakit.cli.__main__ import COMMANDS, PACKAGE, build_parser, main, own_warnings
from tests.support.tiny import ROOT


def test_energy_run_passes_the_commands_status_and_output_through(capfd):
    assert main(["energy", "run", "--", sys.executable, "-c", "print('out'); raise SystemExit(7)"]) == 7
    printed = capfd.readouterr()
    assert printed.out == "out\n"
    assert "energy over" in printed.err


def test_a_name_that_is_not_utf8_is_printed_where_output_is_strict(tmp_path, monkeypatch):
    corpus = tmp_path / os.fsdecode(b"caf\xe9.tsv")
    corpus.write_text("IL-2\tB-DNA\nbinds\tO\n\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(BytesIO(), encoding="utf-8", errors="strict"))
    assert main(["data", "show", str(corpus)]) == 0
    sys.stdout.flush()
    assert rb"caf\udce9.tsv" in sys.stdout.buffer.getvalue()


def test_energy_doctor_names_every_component(capsys):
    assert main(["energy", "doctor", "--seconds", "0.1"]) in (0, 1)  # 1 where nothing can be measured
    lines = capsys.readouterr().out.splitlines()
    assert {"GPU", "CPU", "RAM"} <= {line.split()[0] for line in lines if line.strip()}


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "lorakit energy run -- python train.py" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "first"), [([], "train, evaluate"), (["energy"], "run, "), (["data"], "show, ")])
def test_without_a_command_the_error_names_those_there_are(given, first, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(given)
    error = capsys.readouterr().err
    name = " ".join(["lorakit", *given])
    assert error.startswith(f"{name}: error: give a command: {first}")
    assert error.endswith(f"; {name} --help says what each does\n")


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


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "params", "energy"])
def test_help_of_each_command_shows_examples(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"examples:\n  lorakit {command}" in text
    assert "None" not in text


@pytest.mark.parametrize("command", ["run", "doctor", "merge"])
def test_help_of_each_energy_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["energy", command, "--help"])
    assert f"examples:\n  lorakit energy {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["energy", "run", "--co2", "much", "--", "true"], "--co2: much is not a number of 0 or more"),
        (["energy", "run", "--config", "none.yaml", "--", "true"], "--config none.yaml: No such file or directory"),
        (["report", "x", "--f1", "high"], "--f1: high is not an F1 above 0 and up to 1"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses):
    refuses(arguments, message)


def test_every_file_with_a_command_is_in_the_table():
    files = {path.stem for path in (ROOT / "lorakit" / "cli").glob("*.py") if "def add_parser(" in path.read_text()}
    assert files == set(COMMANDS)


WITHOUT_TORCH = """
import sys
from lorakit.cli.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print([name for name in ("torch", "transformers", "datasets", "matplotlib") if name in sys.modules])
"""


@pytest.mark.parametrize(
    "words", ["--help", "train --help", "train --mode x", "params --r x", "energy run -- true", "predict --documents"]
)
def test_help_mistyped_flags_and_the_energy_of_a_command_load_no_torch(words):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words.split()], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"lorakit {lorakit.__version__}\n"


def test_the_package_is_the_command_too(tmp_path):
    """`python -m lorakit`, for a shell that does not find the script; its messages name the command all the same."""
    for words, status in ((["--version"], 0), (["energy"], 2)):
        command = [sys.executable, "-m", "lorakit", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == status
        assert (done.stdout + done.stderr).startswith("lorakit ")


def test_an_error_of_the_system_in_the_middle_of_the_work_is_one_line(monkeypatch, capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scores.json")
    monkeypatch.setattr(data, "run_formats", lambda arguments: (_ for _ in ()).throw(full))
    assert main(["data", "formats"]) == 1
    assert capsys.readouterr().err == "lorakit data formats: scores.json: No space left on device\n"


def test_a_warning_of_ours_is_one_line_and_names_flags():
    usual, train = warnings.formatwarning, build_parser()._commands.choices["train"]
    with own_warnings(train):
        ours = warnings.formatwarning("try\n precision='fp32'", UserWarning, str(PACKAGE / "training" / "loop.py"), 1)
        theirs = warnings.formatwarning("try", UserWarning, "theirs.py", 1)
    assert ours == "lorakit train: warning: try --precision fp32\n"
    assert theirs == "theirs.py:1: UserWarning: try\n"
    assert warnings.formatwarning is usual


def test_a_tilde_that_the_shell_left_is_the_home_folder(tmp_path, monkeypatch, capsys):
    """As in --output-dir=~/runs and in a --config file; a folder named ~ would be made otherwise."""
    (tmp_path / "home" / "corpus").mkdir(parents=True)
    (tmp_path / "home" / "corpus" / "train.tsv").write_text("IL-2\tB-DNA\n\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "show", "~/corpus"]) == 0
    settings = build_parser().parse_args(
        ["train", "--model=~/base", "--dataset", "~/corpus", "owner/name", "--output-dir=~/runs"]
    )
    home = str(tmp_path / "home")
    assert (settings.model, settings.dataset) == (f"{home}/base", [f"{home}/corpus", "owner/name"])
    assert str(settings.output_dir) == f"{home}/runs"

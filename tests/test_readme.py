"""What the README shows runs as it stands there."""

import re
import subprocess
import sys

import pytest

from .tiny import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.strip().splitlines()[0][:40])
def test_every_python_block_runs(code, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    comments = re.findall(r"print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert comments, "a block shows what it prints"
    for line in comments:
        assert line in done.stdout


def test_the_two_commands_are_single_lines_that_set_everything_up():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv ")]
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)
    assert commands[0].endswith(".venv/bin/python examples/bionlp.py")
    assert commands[1].endswith(".venv/bin/python -m pytest")


def test_every_file_the_readme_names_exists():
    for name in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"^\| `([\w./]+)` ", README, re.MULTILINE):
        assert (ROOT / name).exists(), name

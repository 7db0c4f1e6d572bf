"""What a newcomer tries in the first hour, and what is printed: mistakes, an own corpus, habits from PEFT, the meter.

  python benchmarks/first_hour.py

first_hour.yaml lists what was tried on an early version of lorakit (commit 2a9e5fd), and what that did. This script
runs the same on a small corpus and `examples/mini`, writes down the exit status and the line that matters, and ends
with status 1 if a row does not do what it should.

Runs are forked from this process, which has imported everything, so set OMP_NUM_THREADS=1.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from provenance import ROOT, BenchmarkParser, write_results

ROWS = Path(__file__).with_suffix(".yaml")
SENTENCES = "IL-2\tB-DNA\ngene\tI-DNA\nbinds\tO\nGATA-1\tB-protein\n.\tO\n\n" * 6
TRAIN = "lorakit train --model mini --dataset corpus --epochs 1 --batch-size 4"
MODEL = """\
import lorakit
from lorakit.training.models import load_token_classifier
m, t = load_token_classifier("mini", ["O", "B-x"])
"""
PEFT = f"{MODEL}from peft import LoraConfig, get_peft_model\n"
LONGEST = 170  # characters of a line that the table shows


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="first_hour.py", description=__doc__)
    parser.add_argument(
        "--only", metavar="PATTERN", help="run the rows whose description has this, and keep the others of the table"
    )
    options = parser.parse_args(arguments)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # the latter: it warns of forks
    listed = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    rows = [
        {"part": part, "status": 2, "says": ": error: ", "never": "Traceback", **one}
        for part, found in listed["rows"].items()
        for one in found
    ]
    earlier = kept_rows(Path(options.output_dir) / f"{options.name}.json") if options.only else {}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder) / "prepared")
        for one in rows:
            if re.search(options.only or "", one["tried"]):
                found.append(tried(one, prepared, Path(folder) / "row"))
            elif kept := earlier.get(key(one)):
                found.append(kept)
    wrong = [one for one in found if not one["right"]]
    tests = [
        {"tried": what, "then": then, "test": f"{file}::test_{name}"}
        for file, named in listed["tests"].items()
        for what, then, name in named
    ]
    options.command = "python benchmarks/first_hour.py"  # with --only, too, the table is what this command makes
    write_results(options, {"only": options.only, "rows": found, "tests": tests}, report)
    return 1 if wrong else 0


def key(row: dict[str, Any]) -> str:
    """What makes a row the same as one of an earlier table."""
    return json.dumps([row["part"], row["tried"], row["run"]])


def kept_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier table, if there is one."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return {key(row): row for row in rows}


def prepare(folder: Path) -> Path:
    """A folder with the base, corpora, and a run that has kept its checkpoints."""
    folder.mkdir()
    (folder / "mini").symlink_to(ROOT / "examples" / "mini")
    for name in ("bare", "other"):
        shutil.copytree(ROOT / "examples" / "mini", folder / name, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in (folder / "bare").glob("tokenizer*"):
        path.unlink()
    _other_weights(folder / "other" / "model.safetensors")
    plain = re.sub(r"\t[BI]-\w+", "\tO", SENTENCES)
    corpora = {
        "corpus": {},
        "all-o": {"train": plain, "valid": plain, "test": plain},
        "dev-o": {"valid": plain},
        "dev-rna": {"valid": SENTENCES.replace("protein", "RNA")},
        "iob1": dict.fromkeys(("train", "valid", "test"), SENTENCES.replace("B-", "I-")),
        "long": {"train": SENTENCES + "binds\tO\n" * 2000 + "\n"},
    }
    for name, others in corpora.items():
        (folder / name).mkdir()
        for split in ("train", "valid", "test"):
            (folder / name / f"{split}.tsv").write_text(others.get(split, SENTENCES), encoding="utf-8")
    (folder / "empty").mkdir()
    (folder / "only-test").mkdir()
    shutil.copy(folder / "corpus" / "test.tsv", folder / "only-test")
    with contextlib.chdir(folder):  # not in a fork: what it imports, every row has then
        if _run("{train} --r 2 --output-dir run --keep-checkpoints"):
            raise RuntimeError("the run that the rows start from has failed")
    return folder


def _other_weights(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def tried(row: dict[str, Any], prepared: Path, folder: Path) -> dict[str, Any]:
    """Run a row's commands in a copy of the prepared folder; the last one's status and line, and whether it is right.

    An error of a command is one line, the last.
    """
    shutil.copytree(prepared, folder, symlinks=True)
    try:
        for command in row["run"]:
            status, output = in_a_fork(command.replace("{here}", str(folder)), folder)
    finally:
        shutil.rmtree(folder)
    lines = output.replace(f"{folder}/", "").replace(f"{ROOT}/", "").splitlines()
    shown = [line for line in lines if re.search(row["says"], line)]
    one_line = status != 2 or [": error: " in line for line in lines].count(True) == 1 and ": error: " in lines[-1]
    right = bool(shown) and status == row["status"] and one_line and not re.search(row["never"], output)
    line = " ".join((shown or lines or [""])[0].split())
    print(
        f"right: {row['tried']}" if right else f"WRONG: {row['tried']}: {status}\n{output}", file=sys.stderr, flush=True
    )
    return {
        **{name: row[name] for name in ("part", "tried", "then", "run")},
        "status": status,
        "now": line if len(line) <= LONGEST else f"{line[:LONGEST]}…",
        "right": right,
    }


def in_a_fork(command: str, folder: Path) -> tuple[int, str]:
    """Exit status and output of a command line or a program, run by a fork of this process in a folder."""
    with tempfile.TemporaryFile() as file:
        process = os.fork()
        if process == 0:
            _become(command, folder, file.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        file.seek(0)
        return status, file.read().decode(errors="replace")


def _become(command: str, folder: Path, output: int) -> None:
    """Run the command in this process and end it."""
    status = 1
    try:
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os.chdir(folder)
        status = _run(command)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _run(command: str) -> int:
    from lorakit.cli.__main__ import main as lorakit_main

    if command.startswith("python: "):
        program = command.removeprefix("python: ").replace("{peft}", PEFT).replace("{model}", MODEL)
        exec(program, {"Path": Path, "root": ROOT})
        return 0
    return lorakit_main(shlex.split(command.replace("{train}", TRAIN))[1:])


def report(found: dict[str, Any]) -> list[str]:
    """A table per part, and one of the rows that are tests."""
    lines = [
        "# The first hour",
        "",
        "What a newcomer tries, what an early version of lorakit did (commit 2a9e5fd), and what is printed now: exit",
        "status, and the line that matters. An error of a command is one line with status 2; a program that raises has",
        "status 1. The last table is of crashes, several processes, strangers' files and pages, which tests try.",
    ]
    for part in dict.fromkeys(row["part"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["part"] == part]
        lines += ["", f"## {part}", "", *_table((row["tried"], row["then"], _now(row)) for row in rows)]
    rows = found["tests"]
    lines += ["", "## Crashes, processes, strangers' files, pages", ""]
    lines += _table((row["tried"], row["then"], f"passes: {row['test']}") for row in rows)
    return lines + (["", f"Run last, and the others before: `--only {found['only']}`"] if found["only"] else [])


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table of sentences, which would be hard to read if its columns were padded."""
    escaped = ([re.sub(r"([|<`*_])", r"\\\1", cell) for cell in row] for row in rows)
    return ["| tried | then | now |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in escaped)]


def _now(row: dict[str, Any]) -> str:
    return f"{'' if row['right'] else 'WRONG: '}{row['status']}: {row['now']}"


if __name__ == "__main__":
    import peft  # noqa: F401  # for the rows: the first training imports everything else

    sys.exit(main())

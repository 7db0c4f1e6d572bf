"""The examples of each --help do their work: they are run, in a folder that has what they name, on tiny inputs."""

import io
import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lorakit.cli.__main__ import build_parser, main
from lorakit.cli.parser import Parser
from tests.integration.test_command_lines import examples
from tests.support.tiny import MINI, make_tiny_model

NOT_RUN = {  # beginning of an example: why it only has to parse, as test_command_lines checks
    "torchrun": "test_adapters_under_ddp_and_fsdp starts processes",
    "lorakit train --mode both --seeds 5": "ten runs; test_seeds trains several",
    "lorakit tune": "test_tune searches",
}
EXTRAS = {"--to onnx": "onnxscript", "--to spacy": "spacy", "--to peft": "peft"}
TRAIN = "lorakit train --model roberta-base --dataset path/to/corpus --epochs 6 --batch-size 4 --learning-rate 1e-2"
SENTENCE = "IL-2\tB-DNA\ngene\tI-DNA\nbinds\tO\nGATA-1\tB-protein\n.\tO\n\n"
RECORDS = '{"tokens": ["IL-2", "binds"], "tags": ["B-DNA", "O"]}\n' * 10
FILES = {
    "corpus.tsv": "1\tIL-2\tNN\tS-DNA\n2\tbinds\tVBZ\tO\n\n",
    "types.tsv": "protein\tgene\n",
    "corpus.jsonl": RECORDS,
    "export.jsonl": RECORDS,
    "sentences.txt": "IL-2 gene binds GATA-1 .\n",
    "site.yaml": "co2: 300\nout: energy.jsonl\n",
    "settings.yaml": "model: roberta-base\ndataset: path/to/corpus\noutput-dir: runs/settings\n",
    "train.py": "print(1)\n",
    "predict.py": "print(2)\n",
}


def lines_of(parser: Parser) -> list[str]:
    """The examples of a parser and of its commands, once each."""
    inner = parser._commands.choices.values() if parser._commands else ()
    return list(dict.fromkeys([*examples(parser.format_help()), *(line for one in inner for line in lines_of(one))]))


LINES = lines_of(build_parser())


def run(line: str) -> int:
    """Run an example; as a shell does, replace what has a * by the files there are."""
    words = [[word] if "*" not in word else sorted(map(str, Path().glob(word))) for word in shlex.split(line)]
    return main(sum(words[1:], []))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    corpus = folder / "path" / "to" / "corpus"
    corpus.mkdir(parents=True)
    for split, count in {"train": 20, "valid": 400, "test": 20}.items():  # 240 to promise a precision
        (corpus / f"{split}.tsv").write_text(SENTENCE * count, encoding="utf-8")
    for base in ("roberta-base", "path/to/folder-with-config.json"):
        make_tiny_model().save_pretrained(folder / base)
        for file in MINI.glob("tokenizer*.json"):
            shutil.copy(file, folder / base)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "articles").mkdir()
    shutil.copy(folder / "sentences.txt", folder / "articles")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands = [f"{TRAIN} --mode both --output-dir runs/r8", f"{TRAIN} --output-dir runs/mine"]
        commands += ["lorakit data convert path/to/corpus/test.tsv path/to/brat --format brat"]
        commands += ["lorakit calibrate --adapter runs/mine/adapter --dataset path/to/corpus"]
        commands += [f"lorakit energy run --out node-{number}.jsonl -- true" for number in (1, 2)]
        for command in commands:
            assert run(command) == 0, command
        for copy in ("r32", "seed-0", "seed-1", "bionlp"):
            shutil.copytree("runs/r8", f"runs/{copy}")
        shutil.copytree("runs/r8/full/model", "runs/mine/model")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which the example runs, with no settings of this machine."""
    folder = shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((folder / "sentences.txt").read_bytes())))
    return folder


@pytest.mark.filterwarnings("ignore:.*is more than.*can use")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith(tuple(NOT_RUN))])
def test_an_example_runs(line: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option, package in EXTRAS.items():
        if option in line and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if "--output-dir runs/mine" in line:
        shutil.rmtree("runs/mine")
    if line.startswith("lorakit export runs/mine "):
        shutil.rmtree("runs/mine/model")  # a run of one mode has one of them
    before = set(here.rglob("*"))
    status = run(line)
    printed = capfd.readouterr()
    assert status == 0 or "energy doctor" in line and status == 1, (status, printed.err)  # 1: nothing is measured here
    assert printed.out or printed.err or set(here.rglob("*")) - before


def test_the_examples_are_found_and_those_left_out_are_there() -> None:
    assert len(LINES) > 45
    assert all(any(line.startswith(beginning) for line in LINES) for beginning in NOT_RUN)

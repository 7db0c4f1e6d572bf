"""What a refusal of a command, a meter, a report or an export says to do works: every message is here, and its advice
is followed here, or in the test that is named, or it has none to follow, for the reason given."""

import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from lorakit.cli.__main__ import main
from lorakit.cli.documents import AT_ONCE
from lorakit.energy import EnergyMeter
from tests.support.refusals import as_regex, check_lists, check_tests_exist
from tests.support.tiny import MINI, ROOT, make_tiny_model

FILES = [
    ROOT / "lorakit" / "energy.py",
    *(path for name in ("cli", "export", "power", "report") for path in sorted((ROOT / "lorakit" / name).glob("*.py"))),
]
TRAIN = "train --model BASE --dataset CORPUS --epochs 1 --batch-size 4 --output-dir out"
TUNE = (
    "tune --model BASE --trials 1 --epochs 1 --finalists 1 --finalist-seeds 1 --ranks 1 --learning-rates 1e-2"
    " --targets query --batch-size 4 --output-dir out"
)
LATIN_1 = os.fsdecode(b"caf\xe9")
EVALUATE = "evaluate --adapter LORA --dataset CORPUS"
PREDICT = "predict 'IL-2 gene binds.' --adapter LORA"
DOCUMENTS = "predict --adapter LORA --documents FILE --output out.jsonl"
CALIBRATE = "calibrate --adapter LORA --dataset CORPUS --decode"
METERED = "energy run FLAGS -- true"
PARAMS = "params BASE --num-labels 3"


# Command lines, in a folder of their own ------------------------------------------------------------------------------


@dataclass
class Place:
    """What the words in capitals stand for: a base, a corpus, a run of both modes; FILE holds a sentence."""

    names: dict[str, str]

    def run(self, line: str) -> int:
        """Run a command of lorakit; returns its status."""
        words = shlex.split(line)
        named = re.compile(r"\b(" + "|".join(self.names) + r")\b")
        return main([named.sub(lambda found: self.names[found[0]], word) for word in words])


Act = str | Callable[[Place], object]


def config(content: str | bytes, command: str = PARAMS, name: str = "settings.yaml") -> Act:
    """A command with a --config file of this content."""

    def act(place: Place) -> int:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return place.run(f"{command} --config {name}")

    return act


def metered(flags: str) -> str:
    return METERED.replace("FLAGS", flags)


def after(command: str, *files: tuple[str, str]) -> Act:
    """A command where there are these files already."""

    def act(place: Place) -> int:
        for name, content in files:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(content, encoding="utf-8")
        return place.run(command)

    return act


def homeless(command: str) -> Act:
    """A command where no variable says where settings are kept."""

    def act(place: Place) -> int:
        kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CONFIG_HOME")}
        with mock.patch.dict(os.environ, kept, clear=True):
            return place.run(command)

    return act


def moved(command: str) -> Act:
    """A command on an adapter alone, without the run that it is of."""

    def act(place: Place) -> int:
        shutil.copytree(place.names["LORA"], "alone")
        return place.run(command)

    return act


def damaged(command: str, removed: bool) -> Act:
    """A command on a run whose record is damaged, or has been moved away."""

    def act(place: Place) -> int:
        record = Path(place.names["RUN"], "comparison.json")
        record.unlink() if removed else record.write_text("{", encoding="utf-8")
        return place.run(command)

    return act


def without_its_corpus(command: str) -> Act:
    def act(place: Place) -> int:
        record = Path(place.names["RUN"], "comparison.json")
        record.write_text(record.read_text(encoding="utf-8").replace(place.names["CORPUS"], "gone"), encoding="utf-8")
        return place.run(command)

    return act


def meter(use: Callable[[EnergyMeter], object] = lambda meter: None, **options: object) -> Act:
    """An EnergyMeter around nothing, and then used."""

    def act(place: Place) -> None:
        with EnergyMeter(**options) as one:
            pass
        use(one)

    return act


def several(*commands: str) -> Act:
    """Commands, of which only the last may fail."""

    def act(place: Place) -> int:
        assert [place.run(command) for command in commands[:-1]] == [0] * (len(commands) - 1)
        return place.run(commands[-1])

    return act


def window(name: str) -> Act:
    def act(place: Place) -> None:
        with EnergyMeter() as one, one.window(name):
            pass

    return act


def used_again(meter: EnergyMeter) -> None:
    with meter:
        pass


# words of a message, as they stand in the code -> what is refused with it, and each advice, followed
FOLLOWED: dict[str, tuple[Act, ...]] = {
    # cli: calibrate, checks, config, corpora, data, documents
    "has no validation set; calibrate on one that training has not seen": (
        "calibrate --adapter LORA --dataset ONE",
        "calibrate --adapter LORA --dataset CORPUS",
    ),
    "--r is …, and no weight of this base has a rank above …; give at most": (f"{TRAIN} --r 9999", f"{TRAIN} --r 2"),
    "give a .yaml, .yml or .toml file": (
        config("r: 2", name="settings.ini"),
        config("r: 2"),
        config("r: 2", name="settings.yml"),
        config("r = 2", name="settings.toml"),
    ),
    "instead of keys; write lines such as epochs: 3": (config("- 3"), config("epochs: 1", TRAIN)),
    "is not a single value, which this flag needs": (config("r: [1, 2]"), config("r: 2")),
    "… is not one of …": (config("bias: some"), *(config(f"bias: {bias}") for bias in ("none", "all", "lora_only"))),
    "unknown key": (config("rr: 2"), config("r: 2")),
    "--config …: …": (f"{PARAMS} --config settings.yaml", config("r: 2")),
    "not UTF-8": (config(b"r: 2 # \xff"), config("r: 2 # ÿ")),
    "not TOML:": (config("r: 2", name="settings.toml"), config("r = 2", name="settings.toml")),
    "not YAML:": (config("r: [2"), config("r: 2")),
    "is not true or false": (config("no-check-base: 3", EVALUATE), config("no-check-base: true", EVALUATE)),
    "the list is empty": (config("target-modules: []"), config("target-modules: [query]")),
    "invalid … value:": (config("r: x"), config("r: 2")),
    "appears twice": (config("r: 1\nr: 2"), config("r: 2")),
    "--sentences is …; it must be at least 1": (f"{EVALUATE} --sentences 0", f"{EVALUATE} --sentences 1"),
    "give a number or a name for each role, such as word=1,tag=3": (
        "data show CORPUS --columns x",
        "data show CORPUS --columns word=1,tag=2",
    ),
    "a role is named twice; give each one column": (
        "data show CORPUS --columns word=1,word=2",
        "data show CORPUS --columns word=1,tag=2",
    ),
    "--first is …; it must be at least 0": ("data show CORPUS --first=-1", "data show CORPUS --first 0"),
    "is left over from an interrupted command; continue it with --resume-output, or delete it": (
        after(DOCUMENTS, ("out.jsonl.part", "")),
        after(f"{DOCUMENTS} --resume-output", ("out.jsonl.part", "")),
        DOCUMENTS,
    ),
    "is damaged; delete the file and start again": (
        after(f"{DOCUMENTS} --resume-output", ("out.jsonl.part", "x\n" * AT_ONCE)),
        f"{DOCUMENTS} --resume-output",
    ),
    "give the same documents as before, or delete the file": (
        after(f"{DOCUMENTS} --resume-output", ("out.jsonl.part", '{"document": "z", "entities": []}\n' * AT_ONCE)),
        f"{DOCUMENTS} --resume-output",
    ),
    # cli: energy
    "--json -: standard output belongs to the command; give a file": (metered("--json -"), metered("--json e.json")),
    "no command is given: lorakit energy run -- python train.py": ("energy run", "energy run -- true"),
    "… … is a folder; give a file": (metered("--json ."), metered("--json e.json")),
    "set one, the calibration is kept below it": (
        homeless("energy calibrate --idle 38 --load 92"),
        "energy calibrate --idle 38 --load 92",
    ),
    "name the same file, …: give each its own": (metered("--json e --out e"), metered("--json e --out f")),
    "… … cannot be written: …": (metered("--json gone/e"), metered("--json e")),
    "has other columns than lorakit's; give another file": (
        after(metered("--csv a.csv"), ("a.csv", "a,b\n1,2\n")),
        metered("--csv b.csv"),
    ),
    "needs a number above 0 and your own factors": (
        metered("--sci 2"),
        metered("--sci 2 --co2 400 --embodied 120"),
    ),
    "is part of the SCI: add": (
        metered("--embodied 120"),
        metered("--embodied 120 --sci 2 --co2 400"),
    ),
    # cli: evaluate, export, flags
    "has no … set; it has …: choose one with --split": (
        "evaluate --adapter LORA --dataset HALF",
        "evaluate --adapter LORA --dataset HALF --split validation",
        "evaluate --adapter LORA --dataset HALF --split train",
    ),
    "must end in .html, for a page, or .json": (
        f"{EVALUATE} --errors e.txt",
        f"{EVALUATE} --errors e.html",
        f"{EVALUATE} --errors e.json",
    ),
    "--int8 is only for --to onnx; leave it out": ("export LORA out --to peft --int8", "export LORA out --to peft"),
    "--through is only for --to hf; leave it out": (
        "export LORA out --to peft --through words",
        "export LORA out --to peft",
    ),
    "exists and is not empty; give a new folder": (
        after("export LORA out --to peft", ("out/x", "")),
        "export LORA other --to peft",
    ),
    "holds …; give one of them": (
        "export RUN out --to peft",
        "export LORA out --to peft",
        "export FULL out --to hf",
    ),
    "holds no trained model": ("export CORPUS out --to peft", "export LORA out --to peft"),
    "is a whole model; leave it out": ("export FULL out --to hf --model BASE", "export FULL out --to hf"),
    "has no adapter for PEFT; export it --to hf": ("export FULL out --to peft", "export FULL out --to hf"),
    "does not say which corpus it was trained on, and an export is proven on sentences": (
        moved("export alone out --to peft"),
        moved("export alone out --to peft --dataset CORPUS"),
    ),
    "is damaged (…); move it away to export without it": (
        damaged("export LORA out --to peft", removed=False),
        damaged("export LORA out --to peft --dataset CORPUS", removed=True),
    ),
    "the run's own corpus cannot be read (…); give one with --dataset": (
        without_its_corpus("export LORA out --to peft"),
        without_its_corpus("export LORA out --to peft --dataset CORPUS"),
    ),
    "is not NAME=RATE, such as word_embeddings=5e-4": (
        f"{TRAIN} --module-learning-rates lora_B",
        f"{TRAIN} --module-learning-rates lora_B=1e-2",
    ),
    "is no way to start; give": (
        f"{PARAMS} --init-lora-weights True",
        *(f"{PARAMS} --init-lora-weights {how}" for how in "kaiming gaussian orthogonal pissa_niter_4 olora".split()),
    ),
    "--sequential: only for --mode both, but the mode is …; leave it out": (
        f"{TRAIN} --mode lora --sequential",
        f"{TRAIN} --mode lora",
    ),
    "only for LoRA, but the mode is full; leave": (
        f"{TRAIN} --mode full --r 2",
        f"{TRAIN} --mode full",
        f"{TRAIN} --mode lora --r 2",
        f"{TRAIN} --mode both --r 2",
    ),
    "… … cannot be written: … is not a folder": (
        after(f"{TRAIN}/x", ("out", "")),
        TRAIN,
    ),
    "the path is not UTF-8, and no model can be read from it; give another folder": (f"{TRAIN}/{LATIN_1}", TRAIN),
    "or some labels' numbers, such as B-DNA=5 I-DNA=5": (
        f"{TRAIN} --class-weights x",
        f"{TRAIN} --class-weights balanced",
        f"{TRAIN} --class-weights B-DNA=5 I-DNA=5",
    ),
    # cli: params, parser, predict, report
    "there is no …; give a folder with config.json": ("params ./gone --num-labels 3", PARAMS),
    "it has no config.json; give a model's folder": ("params CORPUS --num-labels 3", PARAMS),
    "--num-labels is …; it must be at least 1": ("params BASE --num-labels 0", "params BASE --num-labels 1"),
    "is not a number of 0 or more": (metered("--baseline=-1"), metered("--baseline 0")),
    "g/kWh is no grid's; give grams": (metered("--co2 0.4"), metered("--co2 400"), metered("--co2 0")),
    "both texts and --file … are given; give one of them": (f"{PREDICT} --file FILE", PREDICT),
    "--documents writes JSON lines of its own texts; leave out TEXT, --file and --format": (
        f"{PREDICT} --documents FILE --output out.jsonl",
        DOCUMENTS,
    ),
    "--documents needs a file to write: --output FILE.jsonl": (
        "predict --adapter LORA --documents FILE",
        DOCUMENTS,
    ),
    "give X or TYPE=X with X from 0 to 1, such as 0.8 or DNA=0.8; texts come first": (
        "predict --adapter LORA --min-score 0.8 'IL-2 gene binds.'",
        f"{PREDICT} --min-score 0.8",
        f"{PREDICT} --min-score DNA=0.8",
    ),
    "the model has no type …; it has": (f"{PREDICT} --min-score X=0.8", f"{PREDICT} --min-score DNA=0.8"),
    "cannot be read: …; give a UTF-8 file, or - for stdin": (
        "predict --adapter LORA --file gone.txt",
        "predict --adapter LORA --file FILE",
    ),
    "from which no format follows; use …, or give --format": (
        f"{PREDICT} --output out.xyz",
        f"{PREDICT} --output out.csv",
        f"{PREDICT} --output out.xyz --format table",
    ),
    "--documents … does not exist; give files or folders": (
        "predict --adapter LORA --documents gone --output out.jsonl",
        DOCUMENTS,
    ),
    "is only for --documents; leave it out": (f"{PREDICT} --resume-output", PREDICT),
    "--output … is a folder; give a file": (f"{PREDICT} --output .", f"{PREDICT} --output out.csv"),
    "is not an F1 above 0 and up to 1": ("report RUN --f1 2", "report RUN --f1 0.5 1"),
    "--min-precision needs …/calibration.json: run lorakit calibrate … first": (
        f"{PREDICT} --min-precision DNA=0.5",
        several("calibrate --adapter LORA --dataset CORPUS", f"{PREDICT} --min-precision DNA=0.5"),
    ),
    "is for --decode …, not …; predict with --decode …, or run lorakit calibrate again with --decode": (
        several(f"{CALIBRATE} viterbi", f"{PREDICT} --min-precision DNA=0.5 --decode greedy"),
        several(f"{CALIBRATE} viterbi", f"{PREDICT} --min-precision DNA=0.5 --decode viterbi"),
        several(f"{CALIBRATE} greedy", f"{PREDICT} --min-precision DNA=0.5 --decode greedy"),
    ),
    "every word is tagged O, so there is nothing to learn; see how it is read with lorakit data show": (
        "train --model BASE --dataset NOTHING --output-dir out",
        "data show NOTHING",
    ),
    "the model finds no entity in …, which proves nothing; give others (lorakit export --dataset)": (
        "export LORA out --to peft --dataset NOTHING",
        "export LORA out --to peft --dataset CORPUS",
    ),
    # cli: run_folder, seeds, tool_files, tune
    "--resume continues the run in the folder and --overwrite deletes it; give one of them": (
        f"{TRAIN} --resume --overwrite",
        f"{TRAIN} --resume",
        f"{TRAIN} --overwrite",
    ),
    "--seeds is …; it must be from 1 to": (f"{TRAIN} --seeds 0", f"{TRAIN} --seeds 1"),
    "--margin needs --mode both and --seeds of at least 2; leave it out": (f"{TRAIN} --margin 0.1", TRAIN),
    "cannot be printed; give --output": (f"{PREDICT} --format brat", f"{PREDICT} --format brat --output found"),
    "writes a new folder: give another name": (
        after(f"{PREDICT} --format brat --output found", ("found/x", "")),
        f"{PREDICT} --format brat --output other",
    ),
    "and a search needs at least 2 to choose by; divide the corpus with --split 80/10/10": (
        f"{TUNE} --dataset ONE",
        f"{TUNE} --dataset ONE/train.tsv --split 80/10/10",
    ),
    "--factor is …; it must be at least 2": (
        f"{TUNE} --dataset CORPUS --factor 1",
        f"{TUNE} --dataset CORPUS --factor 2",
    ),
    "--… is …; it must be at least 1": (f"{TUNE} --dataset CORPUS --at-once 0", f"{TUNE} --dataset CORPUS --at-once 1"),
    "--ranks has …; each must be an integer of at least 1": (
        f"{TUNE} --dataset CORPUS --ranks 0",
        f"{TUNE} --dataset CORPUS --ranks 1",
    ),
    "--resume continues the search in the folder and --overwrite deletes it; give one of them": (
        f"{TUNE} --dataset CORPUS --resume --overwrite",
        f"{TUNE} --dataset CORPUS --overwrite",
    ),
    # energy, power
    "is not above 0 and at most 30 s; 5 is a good value": (meter(period_s=0), meter(period_s=5)),
    "is not a number of seconds, 0 or more; 30 is a good value": (meter(idle_s=-1), meter(idle_s=0.01)),
    "this EnergyMeter was used already: make a new one for each block": (meter(used_again), meter()),
    "was opened outside `with EnergyMeter()`": (
        meter(lambda one: one.window("a").__enter__()),
        window("a"),
    ),
    "use `with EnergyMeter() as meter:`": (lambda place: EnergyMeter().reading, meter(lambda one: one.reading)),
    "a window's name must not be empty or contain a '/'": (window("a/b"), window("a")),
    "is not a number of grams of CO2 per kWh, 0 or more": (
        meter(lambda one: one.reading.co2_kg(-1)),
        meter(lambda one: one.reading.co2_kg(0)),
    ),
    "W is not what a computer draws; give W": (
        "energy calibrate --idle 0.038 --load 0.092",
        "energy calibrate --idle 38 --load 92",
    ),
    "each reading of the loaded machine must be above each of the idle one": (
        "energy calibrate --idle 38 --load 38",
        "energy calibrate --idle 38 --load 92",
    ),
    "make 100 % or more; give the meter's own error": (
        "energy calibrate --idle 38 --load 92 --error 100",
        "energy calibrate --idle 38 --load 92 --error 2",
    ),
    # report
    "the report cannot be written to …: give a file in a folder that exists": (
        "report RUN --output gone/p.html",
        "report RUN --output p.html",
    ),
    "a run is named twice: …, …": ("compare RUN RUN", "compare RUN"),
    "nothing to compare, because there is one run": ("compare RUN/lora", "compare RUN"),
    "it must be a difference of F1 above 0 and below 1": ("compare RUN --margin 1", "compare RUN --margin 0.005"),
    "given for …; give one per run": ("report RUN --label a --label b", "report RUN --label a"),
    "a run is named twice: …": ("report RUN RUN --output p.html", "report RUN --output p.html"),
    "there is no folder …; give a run's output folder": ("report gone", "report RUN"),
    "holds neither comparison.json nor …; give a run's output folder": ("report CORPUS", "report RUN"),
}  # fmt: skip
ELSEWHERE = {
    "…; train one after the other with --sequential": "train::test_two_models_without_memory_for_them",
    "or train one after the other with --sequential": "train::test_two_models_without_memory_for_them",
    "or the package tomli (pip install tomli); or use YAML": "config::test_toml_without_a_parser_says",
    "--proc … is not a folder; give the kernel's": "energy_doctor::test_doctor_refuses_a_proc_that_is_no_folder",
    "cannot be locked against other processes": "energy::test_csv_on_a_file_system_without_locks",
    "--file … is not one text per line, but JSON": "tool_files::test_a_file_of_no_lines_of_text_is_refused_and_read_as",
    "is likely to hold more than texts": "predict::test_a_file_of_records_is_not_tagged_as_lines_and_what",
    "give the documents as they were, or delete the file": "documents::test_what_another_command_wrote_is_not",
    "calibration, text or flags; continue with the same ones": "documents::test_what_another_command_wrote_is_not",
    "--documents writes JSON lines, not": "documents::test_entities_are_those_of_the_sentences",
    "the name is empty; give a file or folder": "parser::test_an_empty_name_is_never_the_folder_one_is_in",
    "the name of the model is empty; give a folder": "refusals_of_bases::test_what_the_message_says_to_do_works",
    "--model … cannot be loaded": "data::test_show_says_which_model_it_cannot_load",
    "--more-adapters go with --adapter, whose base they share": "predict::test_another_adapter_adds_entities",
    "--more-adapters find entities, not tags of one model": "predict::test_another_adapter_adds_entities",
    "holds the results of another run": "run_folder::test_another_run_is_refused_and_each_way_that_the_message_names",
    "is inside the results of another run, in …; give a folder outside": "run_folder::test_a_folder_inside_another_run",
    "which is of no run, and a run would write its own there": "run_folder::test_a_folder_with_a_model_of_the_users",
    "holds the results of a training run; give another folder": "tune::test_a_search_and_a_run_share_no_folder",
    "holds a search of lorakit tune; give another folder": "tune::test_a_search_and_a_run_share_no_folder",
    "--overwrite would delete": "run_folder::test_overwrite_never_deletes_what_the_command_reads",
    "resume with the former value, give another": "seeds::test_finished_runs_with_other_settings_are_refused_and_the",
    "so it cannot be trained longer": "run_folder::test_a_run_without_checkpoints_cannot_become_longer_and_the_advice",
    "is not a time; write 90s, 20m or 2h": "tune::test_times_have_a_unit",
    "holds another search; give another folder": "tune::test_a_folder_of_another_search_is_left_alone",
    "no energy is known on this machine": "tune::test_a_budget_of_energy_needs_energy_that_is_known",
    "torch.onnx cannot export …: …; use lorakit": "onnx_graph::test_a_model_that_the_exporter_cannot_trace",
    "cannot be changed to add it; use lorakit": "tokenizer::test_a_tokenizer_that_cannot_add_the_space",
    "holds no energy readings": "energy::test_merge_of_what_is_no_journal_says_what_to_give",
    "ended before its first reading; leave it out": "energy::test_merge_says_which_run_was_killed",
    "merge only one of them": "energy::test_merge_refuses_to_count_a_device_twice",
    "add only one of them, or let EnergyMeter.gather": "reading::test_a_device_of_one_machine_is_added_once",
    "was not scored on a … set (it has: …); choose": "run_comparison::test_a_split_that_a_run_lacks_is_refused",
    "compare runs on the same corpus and split": "run_comparison::test_another_corpus_is_refused_with_both_names",
    "finish it, or train it again": "run_comparison::test_a_run_without_the_file_is_refused_with_the_name",
    "train the run again": "run_comparison::test_a_file_of_another_run_than_the_scores_beside_it_is_refused",
}  # fmt: skip
NOTHING_TO_FOLLOW = {
    "…": "hands on the message of another error",
    "…: …: …": "the same",
    "… is …": "the state of a kernel's file, which the reading tells",
    "download it first": "a model of the hub",
    "numbers with and without a label": "caught where it is raised",
    "cannot build a … model from": "hands on why transformers cannot",
    "--documents runs in one process; leave torchrun out": "a fact about a launcher",
    "count() has no end": "a mistake of ours",
    "what was trained is in …: move it": "a disk that is full",
    "--budget-wh is 0; it must be above 0": "a budget above 0 is a search of its own",
    "which is not installed: pip install": "an installation",
    "the model's classes are not entity tags": "a fact: the model tags something else",
    "the run's record of how it read them": "a damaged file",
    "its powers are impossible": "caught where it is raised",
    "not a non-negative integer": "a broken sensor, which the reading tells",
    "not a count of microjoules": "the same",
    "this is not a journal of lorakit's": "a damaged file",
    "the reading of run … is not lorakit's": "the same",
    "there are no readings to add": "a mistake in a program",
    "method … is none of": "the same",
    "does not fit method …: only 'unavailable' has no number": "the same",
    "a forked child has no reading": "the same",
    "is not a comparison of schema": "a file of another version",
    "is not JSON:": "a damaged file",
    "has one sentence; at least two are needed": "another corpus",
    "so it cannot be compared": "a fact about a run",
}  # fmt: skip


def test_every_message_is_here() -> None:
    check_lists(FILES, FOLLOWED, ELSEWHERE, NOTHING_TO_FOLLOW)


def test_the_tests_that_are_named_exist() -> None:
    check_tests_exist(ELSEWHERE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, corpora and a run of both modes that finds entities."""
    folder = tmp_path_factory.mktemp("made")
    sentence = "IL-2\tB-DNA\ngene\tI-DNA\nbinds\tO\n.\tO\n\n"
    plain = ".\tO\n\n"
    whole, half = {"train": 20, "valid": 240, "test": 20}, {"train": 20, "valid": 20}  # 240 to promise a precision
    for corpus, splits in {"corpus": whole, "half": half, "one": {"train": 20}, "nothing": {"train": 20}}.items():
        (folder / corpus).mkdir()
        for split, count in splits.items():
            content = plain if corpus == "nothing" else sentence
            (folder / corpus / f"{split}.tsv").write_text(content * count, encoding="utf-8")
    (folder / "text.txt").write_text("IL-2 gene binds .\n", encoding="utf-8")
    make_tiny_model().save_pretrained(folder / "base")
    for file in MINI.glob("tokenizer*.json"):
        shutil.copy(file, folder / "base")
    base = f"train --model {folder / 'base'} --dataset {folder / 'corpus'} --output-dir {folder / 'run'}"
    settings = "--mode both --epochs 6 --batch-size 4 --learning-rate 1e-2"
    assert main(shlex.split(f"{base} {settings}")) == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder of one's own to work in, with a copy of the run, and with no settings of this machine."""
    run = shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    names = {
        "BASE": made / "base",
        "CORPUS": made / "corpus",
        "HALF": made / "half",
        "ONE": made / "one",
        "FILE": made / "text.txt",
    }
    names |= {"NOTHING": made / "nothing", "RUN": run, "LORA": run / "lora" / "adapter", "FULL": run / "full" / "model"}
    return Place({name: str(path) for name, path in names.items()})


def outcome(act: Act, place: Place) -> tuple[object, str]:
    """The status of a command, 2 for an error of a function, and the error's message."""
    try:
        return (place.run(act) if isinstance(act, str) else act(place)), ""
    except SystemExit as stopped:
        return stopped.code, ""
    except (ValueError, RuntimeError) as error:
        return 2, str(error)


@pytest.mark.filterwarnings("ignore:.*is more than.*can use")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("words", FOLLOWED)
def test_what_the_message_says_to_do_works(
    words: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused, *advice = FOLLOWED[words]
    (here := tmp_path / "refused").mkdir()
    monkeypatch.chdir(here)
    status, said = outcome(refused, place)
    said = said or capsys.readouterr().err
    assert status == 2
    assert re.search(as_regex(words), said), said
    assert advice
    for number, follow in enumerate(advice):
        (here := tmp_path / str(number)).mkdir()
        monkeypatch.chdir(here)
        status, said = outcome(follow, place)
        assert not status, (follow, said or capsys.readouterr().err)

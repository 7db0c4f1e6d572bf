"""Messages name flags on a command line and arguments in Python."""

import argparse
import re

import pytest

from lorakit.cli.__main__ import build_parser
from lorakit.cli.wording import in_flags
from tests.integration.test_advice import CODE, strings
from tests.support.tiny import ROOT

TRAIN = build_parser()._commands.choices["train"]
LIBRARY = [path for path in sorted((ROOT / "lorakit").rglob("*.py")) if (ROOT / "lorakit" / "cli") not in path.parents]
NAMED_LIKE_SETTINGS = [path for path in LIBRARY if path.parent.name in ("adapters", "nn", "training")]
COMMANDS = re.compile(r"(?:lorakit \w+|docker run|pip install|the same command)\b[^;,()]*| take it as --adapter")


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("learning_rate is 0; it must be above 0", "--learning-rate is 0; it must be above 0"),
        ("start again with overwrite=True instead of resume=True", "start again with --overwrite instead of --resume"),
        ("train with TrainConfig(packing='off')", "train with --packing off"),
        ("pass packing='off', or not", "pass --packing off, or not"),
        ("layers_to_transform=[2, 3].", "--layers-to-transform 2 3."),
        ("modules_to_save=['a b', 'c']", "--modules-to-save 'a b' c"),
        ("modules_to_save=[] adapts it", "modules_to_save=[] adapts it"),  # a flag without a value is none
        ("as in class_weights={'B-DNA': 5.0}", "as in --class-weights B-DNA=5"),
        ("batch_size=8, accumulate=2 and", "--batch-size 8, --accumulate 2 and"),
        ("weight_decay=0.5; r=1e-3", "--weight-decay 0.5; --r 1e-3"),
        ("strategy 'fsdp' needs engine 'eager'", "--strategy fsdp needs --engine eager"),
        ("use engine 'eager' or 'compile'", "use --engine eager or compile"),
        ("engine 'steam' is none", "engine 'steam' is none"),
        ("leave it out of target_modules", "leave it out of --target-modules"),
        ("exclude_modules=['x'] in Python", "exclude_modules=['x'] in Python"),  # there is no such flag
        ("columns={'word': 1, 'tag': 3}: x", "--columns word=1,tag=3: x"),
        ("choose columns={'tag': 'a b'}", "choose --columns 'tag=a b'"),
        ("layer='outer' for 2 or layer='inner' for 3", "--layer outer for 2 or --layer inner for 3"),
        ("leave columns= out, or (columns=)", "leave --columns out, or (--columns)"),
        ("leave word= out", "leave word= out"),
        ("with a label map (label_map), or", "with a label map (--label-map), or"),
        ("give grams_per_kwh=400", "give --co2 400"),  # a flag of another name
        ("data/batch_size/x: no file", "data/batch_size/x: no file"),
        ("no entity type 'batch_size'", "no entity type 'batch_size'"),
        ("target_modules/x and batch_size.py", "target_modules/x and batch_size.py"),
        ("--batch-size=8 and --columns word=2", "--batch-size=8 and --columns word=2"),
        ("the seed of it", "the seed of it"),  # plain words stay, but at the beginning
    ],
)
def test_a_setting_is_named_by_its_flag(message, printed):
    assert in_flags(message, TRAIN) == printed


def test_a_flag_that_switches_off_stands_for_false():
    evaluate = build_parser()._commands.choices["evaluate"]
    assert in_flags("or pass check_base=False to use it", evaluate) == "or pass --no-check-base to use it"


def test_a_command_without_the_flag_keeps_the_argument():
    assert in_flags("batch_size=8 and learning_rate", argparse.ArgumentParser()) == "batch_size=8 and learning_rate"


def test_no_message_of_the_library_names_an_argument_where_there_is_a_flag():
    names = {action.dest for action in TRAIN._actions if action.option_strings}
    changed = 0
    for path in NAMED_LIKE_SETTINGS:
        for text in strings(path):
            if " " not in text.strip() or CODE.search(text):
                continue
            text = text.replace("…", "1")
            printed = in_flags(text, TRAIN)
            changed += printed != text
            assert not re.search(r"(?:TrainConfig|apply_lora)\(\w+=", printed), printed
            for name in names:
                left = re.search(rf"(?<![\w-]){name}=(?!\[\])", printed)
                assert not left and not ("_" in name and re.search(rf"(?<![\w.'-]){name}\b(?!['=])", printed)), printed
    assert changed > 60


def test_no_message_of_the_library_names_a_flag():
    """A program cannot pass one; what is really about a command names the command."""
    texts = [text for path in LIBRARY for text in strings(path) if " " in text.strip() and not CODE.search(text)]
    told = {text: re.findall(r"(?<![\w-])--[a-z][\w-]*", COMMANDS.sub("", text)) for text in texts}
    assert {text: flags for text, flags in told.items() if flags} == {}


def test_that_test_sees_a_flag():
    assert COMMANDS.sub("", "give it with --model") == "give it with --model"


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_an_argument_of_load_tagger_is_a_flag_on_each_command_line_that_loads_one(command):
    parser = build_parser()._commands.choices[command]
    assert in_flags("labels= is for an adapter", parser) == "--labels is for an adapter"
    assert in_flags("such as labels=['O', 'B-DNA']", parser) == "such as --labels O B-DNA"
    assert in_flags("give it with model= if it is elsewhere", parser) == "give it with --model if it is elsewhere"
    assert in_flags("check_base=False is for an adapter", parser) == "--no-check-base is for an adapter"

"""One-line errors, examples in the help, and which flags were given."""

import argparse

import pytest

from lorakit._files import write_text
from lorakit.cli.__main__ import build_parser, main
from lorakit.cli.parser import Parser, add_command, comma_hint, input_errors
from tests.support.tiny import MINI, ROOT


def test_an_error_is_one_line_with_status_2_and_printed_by_the_first_process_alone(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    parser = Parser(prog="try")
    for rank, printed in (("0", "try: error: two lines\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            parser.error("two\n  lines")
        assert capsys.readouterr().err == printed


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("epochs is 0; it must be at least 1", "--epochs is 0; it must be at least 1"),
        ("batch_size must be positive", "--batch-size must be positive"),
        ("batch_size has 2 values", "--batch-size has 2 values"),
        ("batch_size names 'X'", "--batch-size names 'X'"),
        ("batch_size['x'] is 0", "--batch-size['x'] is 0"),
        ("steps is 0", "steps is 0"),  # no flag makes it
        ("epochs are over", "epochs are over"),
        ("it is epochs that must be", "it is epochs that must be"),
    ],
)
def test_a_message_that_begins_with_a_setting_names_its_flag(message, printed, capsys):
    parser = Parser(prog="try")
    parser.add_argument("--epochs")
    parser.add_argument("--batch-size")
    with pytest.raises(SystemExit, match="2"):
        parser.error(message)
    assert capsys.readouterr().err == f"try: error: {printed}\n"


@pytest.mark.parametrize("error", [ValueError("wrong"), FileNotFoundError("wrong"), ImportError("wrong")])
def test_an_error_in_the_input_ends_the_program(error, capsys):
    with pytest.raises(SystemExit, match="2"), input_errors(Parser(prog="try")):
        raise error
    assert capsys.readouterr().err == "try: error: wrong\n"


def test_an_error_of_the_system_names_the_file_and_no_number(tmp_path, capsys):
    for act, said in (
        (lambda: (tmp_path / "none").read_text(), f"{tmp_path / 'none'}: No such file or directory"),
        (lambda: write_text(tmp_path / "none" / "x", ""), f"{tmp_path / 'none' / 'x'}: No such file or directory"),
    ):
        with pytest.raises(SystemExit, match="2"), input_errors(Parser(prog="try")):
            act()
        assert capsys.readouterr().err == f"try: error: {said}\n"


def test_a_bug_is_no_error_in_the_input():
    with pytest.raises(KeyError), input_errors(Parser()):
        raise KeyError("a bug")


def make_parser():
    parser = Parser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--names", nargs="+", default=["a"])
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("files", nargs="*")
    return parser


def test_given_holds_what_the_command_line_sets_also_where_it_is_the_default():
    found = make_parser().parse_args(["x", "--epochs", "3"])
    assert (found.epochs, found.names, found.label, found.resume, found.files) == (3, ["a"], [], False, ["x"])
    assert found.given == {"epochs"}
    assert make_parser().parse_args(["--names", "a", "--resume"]).given == {"names", "resume"}
    assert make_parser().parse_args(["--label", "x", "--label", "y"]).label == ["x", "y"]
    assert make_parser().parse_args([]).given == frozenset()


def test_given_of_a_command_reaches_the_top():
    parser = Parser()
    commands = parser.add_subparsers()
    command = add_command(commands, "try", "try it", "try --r 8", lambda arguments: arguments.r)
    command.add_argument("--r", type=int, default=8)
    found = parser.parse_args(["try", "--r", "8"])
    assert (found.given, found.run(found), found.parser) == ({"r"}, 8, command)


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["train", "--epoch", "1"], "--epochs"),
        (["train", "--lr", "1"], "--learning-rate"),
        (["energy", "run", "--basline", "3", "--", "true"], "--baseline"),
        (["train", "--nonsense"], None),
    ],
)
def test_an_unknown_flag_is_met_with_the_nearest_of_the_command(arguments, near, capsys):
    given = {"train": ["--model", "m", "--dataset", "d"]}.get(arguments[0], [])
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, *given])
    said = capsys.readouterr().err
    assert said.endswith(f"; did you mean {near}?\n") if near else "did you mean" not in said


def test_a_commands_help_has_its_description_and_its_examples_line_by_line():
    command = add_command(Parser().add_subparsers(), "try", "try it", "\ntry --r 8\ntry --r 16   larger\n", print)
    assert "\n\nTry it.\n" in command.format_help()
    assert command.format_help().endswith("\nexamples:\n  try --r 8\n  try --r 16   larger\n")


def test_an_error_that_quotes_half_a_file_is_cut_in_the_middle(capsys):
    with pytest.raises(SystemExit, match="2"):
        Parser(prog="x").error(f"broken line {'a' * 10**6}: one column; a line holds a word, then its tag")
    error = capsys.readouterr().err
    assert error.startswith("x: error: broken line aaa") and " … " in error
    assert len(error) < 4100 and "; a line holds a word, then its tag\n" in error


def test_an_empty_name_is_never_the_folder_one_is_in(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = ["train", "--model", str(MINI), "--dataset", str(ROOT / "examples" / "conll")]
    for command in ([*base, "--output-dir", ""], ["tune", *base[1:], "--output-dir", ""], ["report", ""]):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        assert "the name is empty; give a file or folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def numeric_flags(parser, name="lorakit"):
    """(command, action, a number that it takes) of a parser and its commands; numbers are those that are no text."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child, its in action.choices.items():
                yield from numeric_flags(its, f"{name} {child}")
        for number in ("2000", "0.5") if action.option_strings and action.type else ():
            try:
                value = action.type(number)
            except (ValueError, argparse.ArgumentTypeError):
                continue
            if isinstance(value, int | float):
                yield name, parser, action, number


def test_a_comma_in_a_number_is_met_with_what_to_write_for_every_numeric_flag(capsys):
    flags = list(numeric_flags(build_parser()))
    assert {action.option_strings[0] for *_, action, _ in flags} > {"--idle", "--epochs", "--co2", "--f1", "--margin"}
    for name, parser, action, number in flags:
        wrong = {"2000": "2,000", "0.5": "0,5"}[number]
        with pytest.raises(argparse.ArgumentError) as error:
            parser._get_value(action, wrong)
        assert "; a number has no comma: write " in str(error.value), (name, action.option_strings)
        assert number in str(error.value).rpartition("write ")[2].split(), (name, action.option_strings)


@pytest.mark.parametrize(
    ("text", "convert", "several", "ways"),
    [
        ("38,39", float, True, "38.39 or 38 39"),
        ("38,39", float, False, "38.39"),
        ("4,8", int, True, "4 8"),
        ("4,8", int, False, None),
        ("1e-3,2e-3", float, True, "1e-3 2e-3"),
        ("1,000", int, False, "1000"),
        ("1,000", float, True, "1.000 or 1000 or 1 000"),
        ("abc", float, True, None),
        ("a,b", float, True, None),
        (",", float, True, None),
        ("nan,", float, False, None),
    ],
)
def test_what_a_number_with_a_comma_may_mean(text, convert, several, ways):
    assert comma_hint(text, convert, several) == ("" if ways is None else f"; a number has no comma: write {ways}")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (["energy", "calibrate", "--idle", "38,39", "--load", "92"], "write 38.39 or 38 39"),
        (["train", "--model", "x", "--dataset", "x", "--module-learning-rates", "lora_B=0,5"], "write lora_B=0.5"),
        (["train", "--model", "x", "--dataset", "x", "--class-weights", "B-DNA=0,5"], "write 0.5"),
        (["predict", "--adapter", "x", "--min-score", "DNA=0,8", "--", "a"], "write 0.8"),
        (["params", "x", "--config", "settings.yaml"], "write 0.5"),
    ],
)
def test_a_decimal_comma_is_explained_wherever_a_number_is_read(line, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "settings.yaml", "lora-dropout: 0,5\n")
    with pytest.raises(SystemExit, match="2"):
        main(line)
    assert f"; a number has no comma: {hint}\n" in capsys.readouterr().err

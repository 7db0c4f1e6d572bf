"""benchmarks/on_gpu.py on commands of a moment; and its own commands are ones that their scripts take."""

import time
from dataclasses import replace

import pytest

from tests.support.tiny import ROOT


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "examples")
    import on_gpu

    return on_gpu


def parsed(script, arguments):
    """What a script makes of its arguments, caught before it does anything with them."""

    class Parsed(Exception):
        pass

    def catch(parser, *given):
        raise Parsed(parse(parser, *given))

    from provenance import BenchmarkParser

    parse = BenchmarkParser.parse_args
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as caught:
        patch.setattr(BenchmarkParser, "parse_args", catch)
        __import__(script.removeprefix("benchmarks/").removesuffix(".py")).main(arguments)
    return caught.value.args[0]


def test_every_command_is_one_that_its_script_takes(on_gpu):
    pytest.importorskip("peft")
    for name, part in on_gpu.PARTS.items():
        script, *arguments = on_gpu.on_corpus(part, "elsewhere").words
        if script == "-m":
            files = [word for word in arguments if word.startswith("tests/")]
            assert len(files) == len(on_gpu.TESTED) and all((ROOT / path).is_file() for path in files)
            continue
        options = parsed(script, arguments)
        assert "-gpu" in options.name, name
        assert getattr(options, "dataset", "elsewhere") == "elsewhere"


def test_a_part_that_fails_or_takes_too_long_is_named_and_the_others_run(on_gpu, monkeypatch, capfd):
    script = {
        "good": f"import sys; assert {str(ROOT)!r} in sys.path[:2]; print('good was here')",
        "bad": "raise SystemExit(3)",
        "long": "import time; print('began', flush=True); time.sleep(600)",
        "last": "print('last was here')",
    }
    parts = {name: on_gpu.Part(60, ("-c", code)) for name, code in script.items()}
    parts["long"] = replace(parts["long"], limit_s=3)
    monkeypatch.setattr(on_gpu, "PARTS", parts)
    assert on_gpu.main([]) == 1
    out = capfd.readouterr().out
    assert "good was here" in out and "began" in out and "last was here" in out
    good, bad, long, last = out.splitlines()[-4:]
    assert good.startswith("good: done after ") and last.startswith("last: done after ")
    assert bad.startswith("bad: FAILED with status 3 after ")
    assert long == "long: stopped after 3 s"
    assert on_gpu.main(["--only", "good"]) == 0


def test_no_time_left_is_no_part_begun(on_gpu, monkeypatch, capfd):
    monkeypatch.setattr(on_gpu, "PARTS", {"one": on_gpu.Part(60, ("-c", "print('it ran')"))})
    assert on_gpu.main(["--within", "0"]) == 1
    out = capfd.readouterr().out
    assert "one: not begun" in out and "it ran\n" not in out


def test_what_a_stopped_part_has_started_ends_too(on_gpu, tmp_path):
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert on_gpu.run(on_gpu.Part(2, ("-c", code)), 60) == "stopped after 2 s"
    time.sleep(5)
    assert not mark.exists()

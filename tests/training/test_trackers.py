"""What TensorBoard and W&B are given is what metrics.jsonl holds."""

import sys
import types

import pytest

import lorakit
from lorakit.training.trackers import scalars
from tests.support.toy import quick, read_log, toy_data


@pytest.fixture(scope="module")
def data():
    return toy_data(32, 8, 8)


def expected(folder):
    """(name, step) -> value of every number in metrics.jsonl."""
    return {(name, line["step"]): value for line in read_log(folder) for name, value in scalars(line).items()}


def test_the_numbers_of_a_line_are_named_by_what_they_are_of():
    step = {"event": "step", "epoch": 1, "step": 10, "loss": None, "learning_rate": 0.5, "wall_s": 1.0}
    assert scalars(step) == {"train/epoch": 1, "train/learning_rate": 0.5}  # an unknown value is left out
    entity = {"precision": 0.25, "recall": 1.0, "f1": 0.4, "support": 2}
    line = {"event": "evaluation", "split": "test", "step": 10, "f1": 0.4, "strict": entity, "by_type": {"DNA": entity}}
    found = scalars(line)
    assert (found["test/f1"], found["test/strict/recall"], found["test/by_type/DNA/precision"]) == (0.4, 1.0, 0.25)
    assert scalars({"event": "problem", "message": "a full disk"}) == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in protobuf's and tensorboard's own files
def test_tensorboard_reads_what_metrics_jsonl_holds_and_no_step_twice_after_a_resume(
    tiny_model, tokenizer, data, tmp_path
):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Stop(Exception):
        pass

    def stop_at_step_7():
        if len(read_log(tmp_path)) >= 8:
            raise Stop
        return {"power_w": 61.0}

    options = {"output_dir": tmp_path, "log_to": ("tensorboard",), "log_every": 1}
    with pytest.raises(Stop):  # in the second epoch: the resumed run logs its first steps again
        lorakit.train(tiny_model(), tokenizer, data, quick(**options), observe=stop_at_step_7)
    lorakit.train(tiny_model(), tokenizer, data, quick(**options, resume=True))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    assert len(found) == len({(tag, step) for tag, step, _ in found})
    wanted = expected(tmp_path)
    assert {(tag, step): value for tag, step, value in found} == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    walls = {line["step"]: line["wall_s"] for line in read_log(tmp_path) if line["event"] == "step"}
    assert {event.step: event.wall_time for event in events.Scalars("train/loss")} == pytest.approx(walls, abs=1e-3)


class FakeWandb(types.ModuleType):
    """Stands in for wandb: notes what it is told."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged, self.ended, self.step_metric = [], [], [], None

    def init(self, **options):
        self.inits.append(options)
        return self

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.ended.append(kind)

    def define_metric(self, pattern, step_metric):
        self.step_metric = (pattern, step_metric)

    def log(self, values):
        self.logged.append(values)


@pytest.fixture
def fake_wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_NAME", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_wandb_gets_every_number_and_a_resumed_run_continues_as_the_same(
    tiny_model, tokenizer, data, tmp_path, fake_wandb
):
    folder = tmp_path / "bionlp" / "lora"
    lorakit.train(tiny_model(), tokenizer, data, quick(output_dir=folder, log_to=("wandb",), log_every=2))
    given = {(name, values["step"]): value for values in fake_wandb.logged for name, value in values.items()}
    assert {key: value for key, value in given.items() if key[0] != "step"} == expected(folder)
    assert fake_wandb.step_metric == ("*", "step")
    assert fake_wandb.ended == [None]
    options = fake_wandb.inits[0]
    assert (options["project"], options["name"], options["dir"]) == ("lorakit", "bionlp/lora", str(folder))
    assert options["config"]["learning_rate"] == 1e-2
    assert "mode" not in options  # WANDB_MODE=offline stays wandb's to read
    again = quick(output_dir=folder, log_to=("wandb",), log_every=2, resume=True)
    lorakit.train(tiny_model(), tokenizer, data, again)
    assert fake_wandb.inits[1]["id"] == options["id"]


def test_wandbs_own_variables_come_first(tiny_model, tokenizer, data, tmp_path, fake_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    lorakit.train(tiny_model(), tokenizer, data, quick(output_dir=tmp_path, log_to=("wandb",), epochs=1))
    options = fake_wandb.inits[0]
    assert (options["project"], options["name"], options["id"]) == ("theirs", None, "abc")


def test_a_logger_that_fails_costs_its_log_and_not_the_training(tiny_model, tokenizer, data, tmp_path, fake_wandb):
    def full(values):
        raise OSError("No space left on device")

    fake_wandb.log = full
    with pytest.warns(RuntimeWarning, match="a logger of .*wandb.* failed: No space left on device"):
        result = lorakit.train(tiny_model(), tokenizer, data, quick(output_dir=tmp_path, log_to=("wandb",), epochs=1))
    assert [line["f1"] for line in read_log(tmp_path) if line["event"] == "evaluation"][-1] == result.test.f1


def test_a_logger_that_is_not_installed_is_named_with_the_fix_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.training.trackers.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    with pytest.raises(
        ImportError, match="log_to needs a package that is not installed: pip install tensorboard wandb; or leave"
    ):
        lorakit.TrainConfig(output_dir=tmp_path, log_to=("tensorboard", "wandb"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("log_to", "message"),
    [
        ("wandb", r"log_to is 'wandb'; it must be a tuple of names, such as \('tensorboard',\)"),
        (("mlflow",), "log_to has 'mlflow'; allowed are tensorboard, wandb"),
        ((3,), "it must be a tuple of names"),
    ],
)
def test_an_unknown_logger_is_refused(tmp_path, log_to, message):
    with pytest.raises(ValueError, match=message):
        lorakit.TrainConfig(output_dir=tmp_path, log_to=log_to)


def test_a_logger_needs_a_folder(fake_wandb):
    with pytest.raises(ValueError, match="log_to needs output_dir"):
        lorakit.TrainConfig(log_to=("wandb",))

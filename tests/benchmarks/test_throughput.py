"""The speed benchmarks run whole on a tiny model, and count what they say they count. Nothing here looks at a time."""

import json
import os
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lorakit
from tests.support.tiny import make_tiny_model

pytest.importorskip("peft")
pytest.importorskip("accelerate")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# transformers' own, of its Trainer
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "examples")


TINY = ["--shape", "tiny", "--dataset", "embedded", "--batch-size", "8", "--steps", "2", "--rounds", "1"]


def in_this_process(system):
    """Makes systems that answer as a worker does that serves them."""

    class Here(system):
        def ask(self, method, *arguments):
            return getattr(self, method)(*arguments)

        def close(self):
            pass

    return Here


def test_the_comparison_writes_table_and_figures(benchmarks, tmp_path, capsys):
    import throughput

    options = [*TINY, "--name", "speed", "--output-dir", str(tmp_path)]
    throughput.main(options, start=in_this_process(throughput.System))
    text = (tmp_path / "speed.md").read_text()
    printed = capsys.readouterr().out
    assert text in printed
    assert printed.index("predicted, before any run") < printed.index("median of the rounds")
    found = json.loads((tmp_path / "speed.json").read_text())
    medians = found["medians"]
    assert list(medians) == list(throughput.SYSTEMS)
    for name, row in medians.items():
        assert f"| {throughput.SYSTEMS[name][0]} " in text
        assert row["step_s"] > 0 and row["tokens_per_s"] > 0
        assert row["peak_bytes"] is row["resident_peak_bytes"] is None  # several systems in one process
        assert row["kernels"] is None  # no GPU is counted on a CPU
        assert found["counts"][name]["counted_over_predicted_flops"] == 1
    assert len({row["whole_tokens"] for row in found["rounds"][0].values()}) == 1
    assert medians["lorakit-lora"]["padding"] <= 1.05 < medians["trainer-peft"]["padding"]
    assert medians["lorakit-lora"]["operators"] < medians["loop-peft"]["operators"]
    assert ("LORAKIT_ONEDNN=0" in text) == found["onednn"]  # a difference that is no one's training loop is told
    energy = found["rounds"][0]["lorakit-lora"]["energy"]
    if energy["measured_kwh"] is None:
        assert medians["lorakit-lora"]["measured_j_per_1k"] is None
        assert "estimated energy per token: lorakit LoRA / full" in text and "measured energy per token" not in text


@pytest.mark.parametrize("shape", ["modernbert-base", "deberta-v3-base"])
def test_a_base_of_another_family_is_compared_without_predicted_flops(benchmarks, tmp_path, monkeypatch, shape):
    import jobs
    import throughput

    own = jobs.OTHER_SHAPES[shape]
    monkeypatch.setitem(jobs.OTHER_SHAPES, shape, replace(own, sizes=own.sizes | jobs.sizes(32, 64, 3, 2)))
    options = [*TINY, "--shape", shape, "--systems", "lorakit-lora", "trainer-peft", "--output-dir", str(tmp_path)]
    throughput.main(options, start=in_this_process(throughput.System))
    found = json.loads((tmp_path / f"throughput-{shape}.json").read_text())
    assert found["job"]["target_modules"] == list(own.targets) and found["job"]["dropout"] == own.dropout
    assert found["medians"]["lorakit-lora"]["padding"] <= 1.05 < found["medians"]["trainer-peft"]["padding"]
    speed, by_cpu = found["ratios"][:2]
    assert speed["goal"] == ">= 2.5" and "predicted" not in speed and "predicted" not in by_cpu
    own_round = found["rounds"][0]["lorakit-lora"]
    assert own_round["tokens_per_cpu_s"] == own_round["real_tokens"] / own_round["cpu_s"]
    text = (tmp_path / f"throughput-{shape}.md").read_text()
    assert "| tokens/CPU second, LoRA: lorakit / Trainer + PEFT " in text
    assert ("deberta-v3-base itself has more" in text) == (shape == "deberta-v3-base")
    assert "FLOPs are predicted, and counted, for RoBERTa's family only" in text and "whose FLOPs differ" not in text


def test_other_families_have_their_own_defaults(benchmarks):
    """The oracles: PEFT's table of layers, and the dropout of transformers' configuration, which is the base's."""
    from jobs import OTHER_SHAPES
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS
    from transformers import AutoConfig

    from lorakit.adapters.targets import DEFAULT_TARGETS

    for other in OTHER_SHAPES.values():
        assert other.targets == DEFAULT_TARGETS[other.kind] == tuple(PEFTS.get(other.kind, other.targets))
        config = AutoConfig.for_model(other.kind)
        dropouts = {value for name, value in vars(config).items() if name.startswith(("hidden_dropout", "attention_d"))}
        assert dropouts == {other.dropout}


def test_systems_that_saw_other_sentences_are_refused(benchmarks, tmp_path):
    import throughput

    class Cheat(throughput.System):
        def train(self, number):
            tokens = 100 + (self.name == "trainer-peft")
            return {"step_s": 1.0, "whole_tokens": tokens}

    options = [*TINY, "--systems", "lorakit-lora", "trainer-peft", "--output-dir", str(tmp_path)]
    with pytest.raises(RuntimeError, match="did not train on the same tokens: {'lorakit-lora': 100, 'trainer-peft': 1"):
        throughput.main(options, start=in_this_process(Cheat))
    assert not list(tmp_path.iterdir())


class Fragile:
    """What a worker serves: it can answer, be killed, and fail."""

    def add(self, one, other):
        return one + other

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self):
        raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("gpu", [False, True])  # forked, or started afresh
def test_a_worker_that_was_killed_or_failed_is_named(benchmarks, capfd, monkeypatch, gpu):
    from processes import Worker

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    worker = Worker("trainer-full", Fragile)
    assert worker.ask("add", 2, 3) == 5
    with pytest.raises(RuntimeError, match="of trainer-full ended at 'die' with status -9: killed, by the kernel"):
        worker.ask("die")
    worker.close()
    worker = Worker("trainer-full", Fragile)
    with pytest.raises(RuntimeError, match="of trainer-full ended at 'fail' with status 1: its error is above"):
        worker.ask("fail")
    worker.close()
    assert "ZeroDivisionError: on purpose" in capfd.readouterr().err


def test_a_worker_ends_with_its_benchmark(benchmarks):
    from processes import Worker

    worker = Worker("lorakit-lora", Fragile)
    worker.close()
    assert worker.process.exitcode == 0


@pytest.mark.parametrize("name", ["lorakit-lora", "lorakit-full", "trainer-full", "loop-peft"])
def test_predicted_flops_are_those_counted(benchmarks, name):
    import throughput
    from jobs import predict_cost
    from systems import SYSTEMS, Clock

    job = throughput.job_of(throughput.parse(TINY))
    job = replace(job, train=(max(job.train, key=lambda sentence: len(sentence.words)),) * 24)  # all steps are alike
    clock = Clock(job, counts=True)
    with clock.operations:
        given = SYSTEMS[name][1](job, clock, SYSTEMS[name][2])
    predicted = predict_cost(job, name)
    assert predicted["padding"] == given.computed / given.real
    assert predicted["padding"] <= (1.05 if name.startswith("lorakit") else 1)  # a width is a multiple of UNIT
    assert predicted["real"] == given.real / job.steps == given.whole / (job.steps + job.warmup)
    assert predicted["flops"] == clock.cost()["flops"]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("rows, width", [(2, 5), (4, 24)])  # too few tokens for W + BA, and enough
@pytest.mark.parametrize(
    "targets, lowest",
    [(None, 0), (("query", "value"), 0), (("value",), 1), (("key",), 0), (("dense",), 0), (("intermediate.dense",), 1)],
)
def test_prediction_from_shapes_is_the_count(benchmarks, dropout, rows, width, targets, lowest):
    import peft
    from flops import Operations, predict_flops

    options = {"r": 4, "target_modules": list(targets or ()), "layers_to_transform": list(range(lowest, 3))}
    for by in ("lorakit", "peft") if targets else ("full",):
        model = make_tiny_model(dropout=dropout, num_hidden_layers=3)
        if by == "lorakit":
            lorakit.apply_lora(model, **options)
        elif by == "peft":
            model = peft.get_peft_model(model, peft.LoraConfig(task_type="TOKEN_CLS", **options))
        ids, labels = torch.randint(5, 8000, (rows, width)), torch.randint(0, 5, (rows, width))
        with FlopCounterMode(display=False) as torchs_own, Operations() as count:
            model.train()(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        predicted = predict_flops(
            model.config, rows, width, targets, 4, lowest, may_merge=by == "lorakit", one_attention_operator=not dropout
        )
        assert predicted == count.flops, by
        if dropout and (by != "lorakit" or width == 24):  # else with operators that torch's counter does not know
            assert predicted == torchs_own.get_total_flops(), by


def test_a_clock_that_missed_steps_says_so(benchmarks):
    import throughput
    from systems import Clock

    clock = Clock(throughput.job_of(throughput.parse(TINY)))
    clock.step()
    with pytest.raises(RuntimeError, match="the clock saw 1 of 3 steps"):
        clock.cost()


def test_every_cpu_path_has_a_row(benchmarks, tmp_path, capsys):
    import cpu

    options = ["--dataset", "embedded", "--shape", "tiny", "--steps", "2", "--repeats", "1", "--batch-size", "4"]
    cpu.main([*options, "--dropout", "0", "--output-dir", str(tmp_path)])
    text = (tmp_path / "cpu-tiny-no-dropout.md").read_text()
    assert text in capsys.readouterr().out
    found = json.loads((tmp_path / "cpu-tiny-no-dropout.json").read_text())
    assert [row["path"] for row in found["steps"]] == list(cpu.PATHS)
    assert all(row[mode] > 0 for row in found["steps"] for mode in ("LoRA", "full"))
    assert all(rate > 0 for row in found["products"] for rate in row["gflops"].values())
    assert [row["sentences"] for row in found["scores"]] == [300, 1500]
    assert all(row[name] > 0 for row in found["scores"] for name in ("seqeval_ms", "tags_ms", "classes_ms"))


def test_scaling_predicts_every_point(benchmarks, tmp_path, capsys):
    import scaling

    options = ["--shape", "tiny", "--dataset", "embedded", "--largest", "4", "--steps", "1", "--rounds", "1"]
    options += ["--grows", "rank", "layers", "--output-dir", str(tmp_path)]
    scaling.main(options, fresh=lambda function, *arguments: function(*arguments))
    text = (tmp_path / "scaling-tiny.md").read_text()
    assert text in capsys.readouterr().out
    points = json.loads((tmp_path / "scaling-tiny.json").read_text())["points"]
    assert {(p["grows"], p["x"], p["mode"]) for p in points} >= {
        ("rank", 4, "lora"),
        ("layers", 1, "lora"),
        ("batch", 2, "full"),
        ("batch", 32, "full"),
    }
    for point in points:
        assert point["flops"] == point["predicted_flops"], point
    base = next(p for p in points if (p["grows"], p["x"], p["mode"]) == ("batch", 32, "full"))
    assert base["predicted_s"] == pytest.approx(base["seconds"][0], rel=1e-12)  # flops / (flops / seconds)


def test_compiling_within_the_timed_steps_is_not_timed(benchmarks, monkeypatch):
    """By a clock that moves when told: 5 s of steps, 100 s of compiling, before and between them."""
    import systems

    now, open_windows = [0.0], []

    @contextmanager
    def window():
        open_windows.append(now[0])
        yield
        open_windows.append(now[0])

    def take(seconds):
        now[0] += seconds
        return seconds

    monkeypatch.setattr(systems.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(systems.time, "process_time", lambda: 2 * now[0])  # two busy threads
    clock = systems.Clock(systems.Job((), (), warmup=1, steps=2), window=window)
    assert clock.pause(lambda: take(100)) == 100  # in the warm-up: part of the start
    take(1)
    clock.step()
    take(2)
    assert clock.pause(lambda: take(100)) == 100
    clock.step()
    take(3)
    clock.step()
    cost = clock.cost()
    assert (cost["startup_s"], cost["timed_s"], cost["step_s"]) == (101, 5, 2.5)
    assert cost["cpu_s"] == 10
    assert open_windows == [101, 103, 203, 206]  # nothing of the pause is in the energy
    assert clock.pause(lambda: take(100)) == 100
    assert clock.cost()["timed_s"] == 5


@pytest.mark.parametrize("words", [[], ["--precision", "bf16"], ["--train-config", '{"precision": "auto"}']])
def test_lorakits_batches_are_those_predicted_in_every_precision(benchmarks, words, monkeypatch):
    import throughput
    from systems import Clock, by_lorakit

    monkeypatch.setattr("lorakit.training.layout.PART_ELEMENTS", 32 * 40)  # so that batches have parts
    job = throughput.job_of(throughput.parse([*TINY, *words]))
    assert len(by_lorakit(job, Clock(job), "lora").shapes) > job.steps


def test_what_a_compiled_run_compiles_is_what_is_not_timed(benchmarks, monkeypatch):
    import throughput
    from systems import Clock, by_lorakit

    monkeypatch.setattr("lorakit.training.graphs.BACKEND", "eager")
    job = throughput.job_of(throughput.parse([*TINY, "--train-config", '{"engine": "compile"}']))
    paused, clock = [], Clock(job)
    monkeypatch.setattr(clock, "pause", lambda call: paused.append(call()) or paused[-1])
    by_lorakit(job, clock, "lora")
    assert paused and None not in paused  # once for every shape, and for nothing else
    assert len(paused) <= job.warmup + job.steps


def test_what_a_run_with_graphs_records_is_what_is_not_timed(benchmarks, monkeypatch):
    """Without a GPU, by graphs that compute as they go."""
    import throughput
    from systems import Clock, by_lorakit

    from lorakit.training.graphs import CudaGraphEngine

    def start(self, forward_backward, table):
        self.forward_backward, self.table = forward_backward, table
        self.total, self.ready = torch.zeros(()), {}

    def prepare(self, plan, targets):
        self.ready[plan.source.shape] = None
        return 1.0

    def run(self, plan, targets, last):
        self.total += self.forward_backward(self.table.batch(plan), targets, last)

    for name, method in {"__init__": start, "prepare": prepare, "run": run}.items():
        monkeypatch.setattr(CudaGraphEngine, name, method)
    job = throughput.job_of(throughput.parse([*TINY, "--train-config", '{"engine": "cuda_graphs"}']))
    paused, clock = [], Clock(job)
    monkeypatch.setattr(clock, "pause", lambda call: paused.append(call()) or paused[-1])
    by_lorakit(job, clock, "lora")
    assert paused and set(paused) == {1.0}  # once for every shape, and for nothing else
    assert len(paused) <= job.warmup + job.steps

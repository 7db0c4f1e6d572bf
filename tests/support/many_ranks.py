"""The job of `test_many_on_ranks.py`: `train_many` on two ranks, beside `train` on two ranks.

Starts its second rank itself; the two connect through the free port in MASTER_PORT:

  MASTER_PORT=PORT python -m tests.support.many_ranks FOLDER

Each part is a function of a folder that returns this rank's facts as JSON; FOLDER/facts.json then holds, by part, a
list of them in the order of ranks.
"""

import hashlib
import itertools
import json
import os
import signal
import sys
import warnings
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoTokenizer
from transformers.models.roberta import modeling_roberta  # noqa: F401, what the ranks need is imported before the fork

import lorakit
from lorakit import AdapterRun
from lorakit.training import many
from lorakit.training.checkpoint import load_checkpoint
from lorakit.training.distributed import gather_bytes, is_main, process_group, rank, world_size
from lorakit.training.identity import OtherRunError, hash_of_tensors
from lorakit.training.models import load_token_classifier
from lorakit.training.preemption import Preempted
from lorakit.training.stacked_parameters import StackedParameters
from tests.support.tiny import LABELS, MINI, make_tiny_model
from tests.support.toy import quick, read_log, toy_data

# 29 and 13 sentences: the last step of an epoch is uneven, or leaves a rank without a sentence
DATA = toy_data(29, 7, 3)
RUNS = [  # two at a time: the others wait for one to end
    AdapterRun("plain", {"r": 2}, quick(epochs=9, batch_size=2, learning_rate=1e-3, patience=1)),
    AdapterRun("uneven", {"r": 8, "seed": 3}, quick(epochs=3, batch_size=7, learning_rate=2e-3, warmup_ratio=0.5)),
    AdapterRun(
        "own",
        {"r": 4, "target_modules": ["query"], "bias": "all"},
        quick(epochs=2, batch_size=2, accumulate=2, learning_rate=2e-3, max_grad_norm=0.1, seed=5),
        replace(toy_data(13, 4, 2), labels=(*LABELS, "B-RNA", "I-RNA")),
    ),
    AdapterRun("pissa", {"r": 3, "init_lora_weights": "pissa"}, quick(epochs=1, batch_size=5, learning_rate=1e-3)),
]
DROPPED = [  # the last one waits
    AdapterRun("short", {"r": 2}, quick(epochs=1, batch_size=4, log_every=3)),
    AdapterRun("long", {"r": 4, "lora_dropout": 0.2}, quick(epochs=2, batch_size=3, log_every=2)),
    AdapterRun("last", {"r": 1}, quick(epochs=1, batch_size=5)),
]


TUNE = [
    "--learning-rates", "1e-3", "4e-3", "--ranks", "1", "2", "--targets", "query", "--epochs", "2", "--trials", "3",
    "--factor", "2", "--finalists", "1", "--finalist-seeds", "2", "--at-once", "2", "--dropout", "0",
]  # fmt: skip


class Killed(Exception):
    pass


def load(folder, labels=LABELS, seed=0, dropout=0.0):
    """The base with a head for the labels, and its tokenizer; the main rank writes it first."""
    base = folder / "base"
    if not base.exists() and is_main():
        make_tiny_model(num_hidden_layers=1).roberta.save_pretrained(base)
        AutoTokenizer.from_pretrained(MINI).save_pretrained(base)
    wait_for_all()
    return load_token_classifier(base, labels, seed, dropout)


def wait_for_all():
    if dist.is_initialized():
        dist.barrier()


def together(folder, name, runs=RUNS, dropout=0.0, data=DATA, **changes):
    """The runs by train_many, two at a time, each in its folder; all are saved after each step of the run "short"."""
    every = {"short": 1}
    runs = [
        replace(
            run,
            config=replace(
                run.config,
                output_dir=folder / name / run.name,
                **{"save_every": every.get(run.name), **changes},
            ),
        )
        for run in runs
    ]
    model, tokenizer = load(folder, dropout=dropout)
    return model, lorakit.train_many(model, tokenizer, data, runs, at_once=2)


def alone(folder, run):
    """The run by `apply_lora` and `train`: the result, and the first step's gradients before they are clipped."""
    place, data = folder / "alone" / run.name, run.data or DATA
    model, tokenizer = load(folder, data.labels, run.config.seed)
    lorakit.apply_lora(model, **run.lora)
    clip, grads = torch.nn.utils.clip_grad_norm_, {}

    def keep(parameters, *given):
        if not grads:
            grads.update({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        return clip(parameters, *given)

    with mock.patch.object(torch.nn.utils, "clip_grad_norm_", keep):
        result = lorakit.train(model, tokenizer, data, replace(run.config, output_dir=place, log_every=1))
    if is_main():
        lorakit.save_adapter(model, place / "adapter")
    return result, grads


def facts_of(result):
    facts = asdict(result)
    del facts["train_seconds"], facts["duration_s"]
    return json.loads(json.dumps(facts))


def timeless(folder):
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "wall_s")} for line in read_log(folder)]


def outcome(folder, runs, results):
    """All that runs leave but times: results and, on the main rank, log lines and a digest of the files."""
    facts = {"results": {name: facts_of(result) for name, result in results.items()}}
    if is_main():
        files = [folder / run.name / "adapter" / "adapter_model.safetensors" for run in runs]
        facts["logs"] = {run.name: timeless(folder / run.name) for run in runs}
        facts["digest"] = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        facts["sentences"] = [json.loads((folder / run.name / "sentences.json").read_text()) for run in runs]
    return facts


def equal(folder):
    """Every run beside others and alone, with the gradients of each one's first step, and what was exchanged."""
    step, first, exchanged, reduce = StackedParameters.step, {}, [], dist.all_reduce
    by_rank = {run.lora["r"]: run.name for run in RUNS}  # each has its own

    def keep(self, grad, *given):
        for row, adapter in enumerate(self.adapters):
            name = by_rank[adapter.config.r]
            if name not in first:
                first[name] = {key: view.clone() for key, view in self._views(grad, row)}
        exchanged.append("step")
        return step(self, grad, *given)

    def count(tensor, *given, **options):
        if tensor.ndim == 2:
            exchanged.append(list(tensor.shape))
        return reduce(tensor, *given, **options)

    with mock.patch.object(StackedParameters, "step", keep), mock.patch.object(dist, "all_reduce", count):
        model, results = together(folder, "many", log_every=1)
    facts = {"many": outcome(folder / "many", RUNS, results), "exchanged": exchanged, "alone": {}}
    facts["values"] = hash_of_tensors(model.named_parameters())
    for run in RUNS:
        result, grads = alone(folder, run)
        facts["alone"][run.name] = facts_of(result)
        if is_main():
            facts.setdefault("lines", {})[run.name] = timeless(folder / "alone" / run.name)
            save_file(first[run.name], folder / f"{run.name}-many.safetensors")
            save_file(grads, folder / f"{run.name}-alone.safetensors")
    return facts


@contextmanager
def killed(owner, name, call):
    """While active, every rank dies at this call of a function, as SIGKILL would have it."""
    original, numbers = getattr(owner, name), itertools.count(1)

    def die(*given, **options):
        if next(numbers) == call:
            raise Killed
        return original(*given, **options)

    with mock.patch.object(owner, name, die):
        try:
            yield
        except Killed:
            torch.manual_seed(999)  # a new process would not have these random numbers either
        else:
            raise AssertionError("it was not called so often")


def resume(folder):
    """With dropout: uninterrupted, and killed in steps and while scoring."""
    _, results = together(folder, "whole", DROPPED, dropout=0.1)
    facts = {"whole": outcome(folder / "whole", DROPPED, results)}
    for name, kills in {"steps": [("step", 2), ("step", 5)], "scoring": [("score_split", 2)]}.items():
        for number, (function, call) in enumerate(kills):
            with killed(StackedParameters if function == "step" else many, function, call):
                together(folder, name, DROPPED, dropout=0.1, resume=bool(number))
        _, results = together(folder, name, DROPPED, dropout=0.1, resume=True)
        facts[name] = outcome(folder / name, DROPPED, results)
    return facts


def left_for_one(folder):
    """Runs without dropout, killed, which one process continues; and uninterrupted."""
    with killed(StackedParameters, "step", 9):
        together(folder, "two-then-one", RUNS[:2], save_every=2)
    return {name: facts_of(result) for name, result in together(folder, "two", RUNS[:2])[1].items()}


def stop(folder):
    """Only the last rank is told to stop: in a step, and between the batches of a validation."""
    facts = {}
    for name, owner, function, call in (
        ("step", StackedParameters, "step", 3),
        ("validation", many, "score_split", 1),
    ):
        original, numbers = getattr(owner, function), itertools.count(1)

        def told(*given, original=original, numbers=numbers, call=call):
            if next(numbers) == call and rank() == 1:
                signal.raise_signal(signal.SIGTERM)
            return original(*given)

        with mock.patch.object(owner, function, told):
            try:
                together(folder, f"stop-{name}", DROPPED)
            except Preempted as stopped:
                places = [folder / f"stop-{name}" / run.name / "checkpoints" for run in DROPPED[:2]]
                steps = [load_checkpoint(place).state["step"] for place in places]
                facts[name] = [stopped.code, str(stopped), steps]
    return facts


def infinite(folder):
    """The last rank's loss of the second run is infinite in its third step; another run's rate makes it diverge."""
    gradients, calls = many._Together.gradients, itertools.count(1)

    def spoil(self, steps):
        if next(calls) == 3 and rank() == 1:
            with mock.patch.object(many, "losses_by_run", lambda *given: losses_by_run(*given) * spoiled(len(steps))):
                return gradients(self, steps)
        return gradients(self, steps)

    losses_by_run = many.losses_by_run
    spoiled = lambda count: torch.tensor([1.0] * (count - 1) + [float("inf")])  # noqa: E731
    config = quick(epochs=6, batch_size=1, learning_rate=1e-3, log_every=5)
    runs = [
        AdapterRun("good", {"r": 2}, replace(config, epochs=1)),
        AdapterRun("spoiled", {"r": 2}, replace(config, epochs=1)),
        AdapterRun("bad", {"r": 2}, replace(config, learning_rate=1e38)),
    ]
    with mock.patch.object(many._Together, "gradients", spoil), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, results = together(folder, "infinite", runs, data=replace(DATA, train=DATA.train[:20]))
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    return {"results": {name: facts_of(result) for name, result in results.items()}, "warnings": told}


def mismatched(folder):
    """What each rank is told when the last one is given something else."""
    facts, last = {}, rank() == 1
    others = {
        "rate": [replace(RUNS[0], config=replace(RUNS[0].config, learning_rate=0.5)), *RUNS[1:]],
        "corpus": [*RUNS[:2], replace(RUNS[2], data=replace(RUNS[2].data, validation=DATA.validation)), RUNS[3]],
        "r": [*RUNS[:3], replace(RUNS[3], lora={"r": 9})],
        "log_every": [replace(RUNS[0], config=replace(RUNS[0].config, log_every=3)), *RUNS[1:]],
        "fewer": RUNS[:3],
    }
    for name, runs in others.items():
        try:
            together(folder, "mismatched", runs if last else RUNS)
        except OtherRunError as error:
            facts[name] = str(error)
    return facts


def tuned(folder):
    """`lorakit tune` into FOLDER/tune; None where Optuna is not installed. Two ranks have half the batch each."""
    if find_spec("optuna") is None:
        return None
    from lorakit.cli.__main__ import main as command

    corpus, out = folder / "corpus", folder / "tune" / str(world_size())
    if is_main():
        write_corpus(corpus)
    load(folder)  # writes the base, and waits
    flags = ["--model", str(folder / "base"), "--dataset", str(corpus), "--output-dir", str(out), *TUNE]
    status = command(["tune", *flags, "--batch-size", str(4 // world_size()), "--budget", "2h"])
    wait_for_all()  # for the main rank's files
    return {"status": status, "written": sorted(path.name for path in out.iterdir())}


def write_corpus(folder):
    """The toy corpus in files, without its empty words."""
    folder.mkdir(exist_ok=True)
    for name, sentences in (("train", DATA.train[:12]), ("valid", DATA.validation), ("test", DATA.test)):
        blocks = ["".join(f"{word} {tag}\n" for word, tag in zip(*one, strict=True) if word) for one in sentences]
        (folder / f"{name}.txt").write_text("\n".join(blocks))


def raises(folder):
    """The last rank fails in its third step, which ends the group."""
    numbers, step = itertools.count(1), StackedParameters.step

    def fail(*given):
        if next(numbers) == 3 and rank() == 1:
            raise ValueError("on purpose")
        return step(*given)

    with mock.patch.object(StackedParameters, "step", fail):
        together(folder, "raises")


PARTS = (equal, resume, left_for_one, stop, infinite, mismatched, tuned)


def main(folder):
    facts = {}
    try:
        with process_group():
            for part in PARTS:
                found = gather_bytes(json.dumps(part(folder)).encode())
                facts[part.__name__] = [json.loads(one) for one in found]
            if is_main():
                (folder / "facts.json").write_text(json.dumps(facts))
            raises(folder)
    except (RuntimeError, ValueError) as error:
        (folder / f"raised-{os.environ['RANK']}").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    second = os.fork()  # before any computation; importing everything twice would take most of the time
    number = "0" if second else "1"
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    try:
        main(Path(sys.argv[1]))
    finally:
        failed = second and os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
    sys.exit(failed)

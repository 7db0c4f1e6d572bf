"""The job of `test_distributed.py`: everything that needs several processes, started once by torchrun.

  torchrun --nproc-per-node 2 -m tests.support.two_ranks FOLDER [PART...]

Each part is a function of a folder that returns this rank's facts as JSON; FOLDER/facts.json then holds, by part, a
list of them in the order of ranks. The functions also run in one process: that is what the tests compare with.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoTokenizer

import lorakit
from lorakit.adapters.storage import save_adapter
from lorakit.cli.measured_training import Contestant, train_in_turns
from lorakit.nn.weights import whole
from lorakit.training import distributed, engine, graphs, layout
from lorakit.training.checkpoint import load_checkpoint
from lorakit.training.engine import LossSum
from lorakit.training.identity import OtherRunError
from lorakit.training.preemption import Preempted
from tests.support.tiny import MINI, make_tiny_model
from tests.support.toy import quick, read_log, toy_data

# 45 sentences, and 1 of the test split, do not divide by 2: the last step and the evaluation are uneven
DATA = toy_data(45, 7, 1)
CURVES = [(mode, strategy, 1 + 3 * n) for n in range(2) for mode in ("lora", "full") for strategy in ("ddp", "fsdp")]
RESUMES = [("lora", "ddp", "fp32"), ("lora", "fsdp", "bf16"), ("full", "fsdp", "fp32")]


class Killed(Exception):
    pass


def train(folder, model, batch=16, **changes):
    """A run in which a step sees the same sentences on any number of ranks."""
    accumulate = changes.get("accumulate", 1)
    size = batch // accumulate // distributed.world_size()
    config = quick(**{"batch_size": size, "output_dir": folder, "log_every": 1, **changes})
    return lorakit.train(model, AutoTokenizer.from_pretrained(MINI), DATA, config)


def make(mode, dropout=0.0, r=4, **options):
    model = make_tiny_model(dropout=dropout, **options)
    if mode == "lora":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "r=.* is more than")
            lorakit.apply_lora(model, r=r, target_modules="all-linear", bias="all", lora_dropout=dropout)
    return model


def whole_weights(model):
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}


def digest(tensors):
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def timeless(folder):
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "wall_s")} for line in read_log(folder)]


def facts_of(result):
    facts = asdict(result)
    del facts["train_seconds"], facts["duration_s"]
    return json.loads(json.dumps(facts))


def curve(folder, mode, strategy, accumulate):
    """A run watched closely: the first step's gradients, what was exchanged, which windows every step saw."""
    name = f"{mode}-{strategy}-{accumulate}"
    model = make(mode, r=320)  # more than DDP's usual first bucket of 1 MiB
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    gradients, exchanged, seen, costs_more = {}, [], [], []
    wrap, forward = engine.wrap_for_ddp, LossSum.forward

    def keep(optimizer, *_):
        if not gradients:
            gradients.update({n: whole(p.grad.clone()) for n, p in model.named_parameters() if n in trained})

    def wrap_and_count(module):
        replicated = wrap(module)
        if isinstance(replicated, DistributedDataParallel):
            replicated.register_comm_hook(None, count)
            costs_more.extend([replicated.will_sync_module_buffers(), replicated.find_unused_parameters])
        return replicated

    def count(state, bucket):
        exchanged.append(bucket.buffer().nbytes)
        return allreduce_hook(state, bucket)

    def note_windows(loss, batch):
        seen.append(sorted(batch.source[batch.words >= 0].tolist()))
        return forward(loss, batch)

    hook = register_optimizer_step_pre_hook(keep)
    engine.wrap_for_ddp, LossSum.forward = wrap_and_count, note_windows
    try:
        result = train(folder / name, model, strategy=strategy, accumulate=accumulate, max_grad_norm=float("inf"))
    finally:
        hook.remove()
        engine.wrap_for_ddp, LossSum.forward = wrap, forward
    weights = whole_weights(model)
    if mode == "lora" and (distributed.is_main() or strategy == "fsdp"):
        save_adapter(model, folder / name / "adapter")
    if mode == "lora":
        lorakit.merge_lora(model)
        merged = whole_weights(model)
        lorakit.unmerge_lora(model)
        unmerged = digest(whole_weights(model))
    if distributed.is_main():
        save_file(gradients, folder / name / "gradients.safetensors")
        save_file(weights, folder / name / "weights.safetensors")
        if mode == "lora":
            save_file(merged, folder / name / "merged.safetensors")
    facts = {
        "digest": digest(weights),
        "exchanged": exchanged,
        "costs more": costs_more,
        "seen": seen,
        "result": facts_of(result),
    }
    facts |= {"trained_bytes": sum(4 * weights[n].numel() for n in trained), "log": timeless_if_main(folder / name)}
    return facts | ({"unmerged": unmerged} if mode == "lora" else {})


def timeless_if_main(folder):
    return timeless(folder) if distributed.is_main() else None


def curves(folder):
    return {"-".join(map(str, kind)): curve(folder, *kind) for kind in CURVES}


def in_parts(folder):
    """LoRA's first curves, with batches in parts of about 40 tokens unless the model is sharded."""
    usual, layout.PART_ELEMENTS = layout.PART_ELEMENTS, 32 * 40
    try:
        return {strategy: curve(folder / "in-parts", "lora", strategy, 1) for strategy in ("ddp", "fsdp")}
    finally:
        layout.PART_ELEMENTS = usual


def one_curve(folder):
    return curve(folder, *CURVES[0])


def evaluation(folder):
    """7 sentences and 1, on any number of ranks."""
    tokenizer, model = AutoTokenizer.from_pretrained(MINI), make_tiny_model()
    splits = {"7": DATA.validation, "1": DATA.test}
    return {name: asdict(lorakit.evaluate(model, tokenizer, split)) for name, split in splits.items()}


def not_a_number(folder):
    """The last rank's loss is infinite in its third micro-batch."""
    model, calls = make("full"), []

    def spoil(module, inputs, output):
        calls.append(module.training)
        if calls.count(True) == 3 and module.training and distributed.rank() == distributed.world_size() - 1:
            output.logits.mul_(float("inf"))

    model.register_forward_hook(spoil)
    result = train(folder / "nan", model, epochs=4)
    weights = whole_weights(model)
    return {
        "skipped": result.skipped_steps,
        "finite": all(bool(w.isfinite().all()) for w in weights.values()),
        "digest": digest(weights),
        "log": timeless_if_main(folder / "nan"),
    }


def resume_run(folder, mode, strategy, precision, stop_after, **changes):
    """Train with dropout; every rank dies in its forward number `stop_after`, as SIGKILL would have it."""
    model, seen = make(mode, dropout=0.1), []

    def die(module, inputs):
        seen.append(module.training)
        if seen.count(True) == stop_after:
            raise Killed

    model.register_forward_pre_hook(die)
    try:
        result = train(
            folder, model, epochs=2, log_every=2, strategy=strategy, precision=precision, save_every=2, **changes
        )
    except Killed:
        torch.manual_seed(999)  # a new process would not have these random numbers either
        return {}
    return {"digest": digest(whole_weights(model)), "result": facts_of(result), "log": timeless_if_main(folder)}


def resume(folder):
    facts = {}
    for kind in RESUMES:
        name = "-".join(kind)
        uninterrupted = resume_run(folder / f"resume-{name}", *kind, None)
        parts = [resume_run(folder / f"resumed-{name}", *kind, after, resume=True) for after in (4, 3, None)]
        facts[name] = [uninterrupted, *parts]
    return facts


def wait_for_all():
    if distributed.world_size() > 1:
        torch.distributed.barrier()


def make_read_only(folder):
    if distributed.is_main():
        folder.mkdir()
        (folder / "checkpoints").symlink_to("/sys/kernel")  # in which not even root makes folders
    wait_for_all()


def disk(folder):
    """The main rank's disk is full from step 5 to 7 (a limit on file size stands in for it), or read-only."""
    facts, calls, before = {}, [], resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        calls.append(1)
        if distributed.is_main() and len(calls) in (5, 8):
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]) if len(calls) == 5 else before)
        if len(calls) == 8:
            facts["while full"] = load_checkpoint(folder / "full" / "checkpoints").state["step"]
        return {}

    make_read_only(folder / "read-only")
    for name, observe in (("fine", None), ("full", fill), ("read-only", None)):
        model = make("lora", r=64)
        config = quick(batch_size=8, epochs=4, output_dir=folder / name, log_every=1, save_every=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lorakit.train(model, AutoTokenizer.from_pretrained(MINI), DATA, config, observe)
        facts[name] = {
            "digest": digest(whole_weights(model)),
            "warnings": [str(w.message) for w in caught if w.category is RuntimeWarning],
            "problems": [line["message"] for line in read_log(folder / name) if line["event"] == "problem"],
            "checkpoints": sorted(path.name for path in (folder / name / "checkpoints").glob("*step-*")),
        }
    return facts


def stop(folder):
    """Only the last rank is told to stop: while training, in an evaluation, and with a read-only disk."""
    facts = {}
    make_read_only(folder / "stop-read-only")
    for name, training_calls in (("stop-training", 3), ("stop-evaluation", None), ("stop-read-only", 3)):
        model, seen = make("lora"), []

        def ask(module, inputs, seen=seen, training_calls=training_calls):
            seen.append(module.training)
            evaluating = not module.training and True in seen
            if seen.count(True) == training_calls or training_calls is None and evaluating:
                if distributed.rank() == distributed.world_size() - 1:
                    signal.raise_signal(signal.SIGTERM)

        model.register_forward_pre_hook(ask)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                train(folder / name, model, log_every=1000)
        except Preempted as stopped:
            found = load_checkpoint(folder / name / "checkpoints")
            facts[name] = [stopped.code, str(stopped), found.state["step"] if found else None]
    return facts


def compiled(folder):
    """A compiled run, with the backend that only traces, because generating C++ takes long."""
    backend, graphs.BACKEND = graphs.BACKEND, "aot_eager"
    try:
        result = train(folder / "compiled", make("lora", num_hidden_layers=1), accumulate=2, epochs=1, engine="compile")
    finally:
        graphs.BACKEND = backend
        torch._dynamo.reset()
    return {"log": timeless(folder / "compiled"), "seconds": result.compile_seconds}


def weighted(folder):
    """A run whose loss weighs the classes differently, which few words of one rank may have."""
    train(folder / "weighted", make("lora"), epochs=1, accumulate=2, class_weights=(0.5, 5.0, 4.0, 3.0, 2.0))
    return timeless(folder / "weighted")


def unused_layers(folder):
    """LoRA on all linear layers of a model with one that never runs, which DDP would wait for."""
    model = lorakit.apply_lora(make_tiny_model("esm", mask_token_id=4), r=2, target_modules="all-linear")
    train(folder / "unused", model, epochs=1, packing=False)
    return timeless(folder / "unused")


def out_of_memory(folder):
    """The last rank's memory does not hold its fifth batch."""
    calls, forward = [], LossSum.forward

    def overflow(*arguments):
        calls.append(1)
        if len(calls) == 5 and distributed.rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments)

    LossSum.forward = overflow
    try:
        train(folder / "memory", make("lora"), save_every=2)
    finally:
        LossSum.forward = forward


def no_gradient(folder):
    """A layer is adapted that never runs, which DDP would only say in the second step."""
    model = make_tiny_model("esm", mask_token_id=4)
    lorakit.apply_lora(model, r=1, target_modules=["query", "regression"])
    train(folder / "no-gradient", model, packing=False)


def raises(folder):
    """The last rank raises an error that has nothing to do with the others."""
    calls = []

    def observe():
        calls.append(1)
        if len(calls) == 3 and distributed.rank() == 1:
            raise ValueError("on purpose")
        return {}

    config = quick(batch_size=8, log_every=1, output_dir=folder / "raises")
    lorakit.train(make("lora"), AutoTokenizer.from_pretrained(MINI), DATA, config, observe)


def hangs(folder):
    """The last rank is stuck in its third step until the first has given up."""
    lose_rank_1(folder, "hangs", lambda: wait_for(folder / "gave-up"))


def dies(folder):
    """The last rank is gone in its third step, as if killed for memory."""
    lose_rank_1(folder, "dies", lambda: os._exit(9))


def lose_rank_1(folder, name, fate):
    model, seen = make("lora"), []

    def lose(module, inputs):
        seen.append(module.training)
        if seen.count(True) == 3 and distributed.rank() == 1:
            fate()

    model.register_forward_pre_hook(lose)
    train(folder / name, model, save_every=1)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def fail(part, folder):
    """A part that ends its group with an error: its message, and how long this rank took from joining to leaving."""
    usual, naming_s = os.environ["LORAKIT_TIMEOUT_S"], distributed.NAMING_S
    if part is hangs:  # the others are noticed at once, however slow the machine is
        os.environ["LORAKIT_TIMEOUT_S"] = "8"
    if part in (hangs, dies):
        distributed.NAMING_S = 1.0  # the lost rank leaves no last word to wait for
    began = time.monotonic()
    try:
        with distributed.process_group():
            part(folder)
            return {}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error), "after_s": time.monotonic() - began}
    finally:
        os.environ["LORAKIT_TIMEOUT_S"], distributed.NAMING_S = usual, naming_s
        if os.environ["RANK"] == "0":
            (folder / "gave-up").touch()


def in_turns(folder: Path) -> dict[str, Any]:
    """Both modes in turns, and each alone, with dropout."""
    contestants, facts = {}, {"alone": {}, "in turns": {}}
    for mode in ("full", "lora"):
        model, place = make(mode, dropout=0.1), folder / "turns" / mode / "alone"
        train(place, model, save_every=4)
        facts["alone"][mode] = [digest(whole_weights(model)), timeless_if_main(place)]
        config = quick(batch_size=8, output_dir=folder / "turns" / mode, log_every=1, save_every=4)
        tokenizer = AutoTokenizer.from_pretrained(MINI)
        contestants[mode] = Contestant(make(mode, dropout=0.1), tokenizer, DATA, config)
    train_in_turns(contestants)
    for mode, one in contestants.items():
        log = timeless_if_main(folder / "turns" / mode)
        for line in log or ():
            line.pop("power_w", None)  # only in measured runs
        facts["in turns"][mode] = [digest(whole_weights(one.model)), log]
    return facts


def mismatched(folder: Path) -> dict[str, str]:
    """What each rank is told when the last one is given other settings, another corpus or another adapter."""
    last, facts = distributed.rank() == distributed.world_size() - 1, {}
    for name, changes in {"rate": {"learning_rate": 0.5}, "epochs": {"epochs": 9}, "r": {}, "corpus": {}}.items():
        model = make("lora", r=8 if last and name == "r" else 4)
        data = toy_data(44, 7, 1) if last and name == "corpus" else DATA
        config = quick(batch_size=8, output_dir=folder / "mismatched", **(changes if last else {}))
        try:
            lorakit.train(model, AutoTokenizer.from_pretrained(MINI), data, config)
        except OtherRunError as error:
            facts[name] = str(error)
    return facts


TOGETHER = (
    curves, in_parts, in_turns, compiled, weighted, unused_layers, evaluation, not_a_number, resume, disk, stop,
    mismatched,
)  # fmt: skip
FATAL = (out_of_memory, no_gradient, raises, hangs)


def main(folder: Path, parts: list[str]) -> None:
    facts: dict[str, list[Any]] = {}
    number = int(os.environ["RANK"])

    def collect(part, mine):
        everyone = distributed.gather_bytes(json.dumps(mine).encode())
        facts[part.__name__] = [json.loads(part) for part in everyone]

    with distributed.process_group():
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
        wait_for_all()
        for part in [globals()[name] for name in parts] or TOGETHER:
            collect(part, part(folder))
    if not parts:
        for part in FATAL:
            mine = fail(part, folder)
            with distributed.process_group():
                collect(part, mine)
                if distributed.is_main():
                    (folder / "gave-up").unlink()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, for the first rank is to tell what it has seen
        facts["dies"] = [fail(dies, folder)]
    if number == 0:
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])

"""Six ways to train the same token classifier, each through its own public interface, and what a step of each costs.

None of them gets a special loop: lorakit runs `lorakit.train`, Trainer `Trainer.train`, accelerate and plain PEFT the
loops of their guides. All get the same initial weights, sentences, learning rates and batch size, and call `Clock.step`
after every step (lorakit through `observe`, Trainer through a callback). Padding, mask, optimizer and order are each
system's own: they are what is compared.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from flops import Operations
from jobs import (
    Job,
    Shape,
    encode_job,
    flops_of,
    lora_of,
    make_model,
    own_config,
    own_model,
    own_shapes,
    own_steps,
    tokenizer_of,
)
from processes import peak_bytes, release_memory, reset_peak, resident_bytes
from torch import nn

import lorakit
from lorakit.data.corpus import NerData
from lorakit.data.packing import Plan
from lorakit.training.graphs import CompiledEngine, CudaGraphEngine


@dataclass(frozen=True)
class Given:
    """The batches of a run. Real tokens include special tokens, computed ones also padding."""

    shapes: list[Shape]  # what went through the model at once, in the timed steps
    real: int  # tokens of the timed steps
    whole: int  # tokens of all steps, warm-up included: the same for all systems

    @classmethod
    def of(cls, job: Job, steps: Sequence[tuple[int, Sequence[Shape]]]) -> "Given":
        """From every step's real tokens and shapes, in order."""
        timed = steps[job.warmup : job.warmup + job.steps]
        shapes = [shape for _, step in timed for shape in step]
        return cls(shapes, sum(real for real, _ in timed), sum(real for real, _ in steps))

    @property
    def computed(self) -> int:
        return sum(rows * width for rows, width, *_ in self.shapes)


class Clock:
    """Times the steps after the warm-up, or counts their operators or kernels, which slows them down.

    Args:
        counts: count operators and FLOPs.
        profiles: count a GPU's kernels.
        window: makes a context that measures energy while the clock runs.
    """

    def __init__(
        self, job: Job, counts: bool = False, profiles: bool = False, window: Callable[[], Any] | None = None
    ) -> None:
        self.job, self.operations, self.window = job, Operations() if counts else None, window
        self.profiler = torch.profiler.profile() if profiles else None
        self.every = 1 if counts else job.warmup  # steps between two calls of `step`, where we can choose
        self.done, self.seen, self.open = 0, [], ExitStack()
        self.called = time.perf_counter()
        self.began = self.ended = self.called
        self.cpu_began = self.cpu_ended = time.process_time()  # of all threads
        self.paused_s = self.paused_cpu_s = 0.0

    def step(self, steps: int = 1) -> None:
        self.done += steps
        if self.operations:
            self.seen.append((self.operations.operators, self.operations.flops))
        if self.done == self.job.warmup:
            synchronize()
            if self.profiler:
                self.profiler.start()
            if self.window:
                self.open.enter_context(self.window())
            self.began, self.cpu_began = time.perf_counter(), time.process_time()
        elif self.done == self.job.warmup + self.job.steps:
            synchronize()
            self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
            self.open.close()
            if self.profiler:
                self.profiler.stop()

    def pause(self, call: Callable[[], Any]) -> Any:
        """Call something that is not part of a step, such as compiling, without measuring its time or energy."""
        if not self.job.warmup <= self.done < self.job.warmup + self.job.steps:
            return call()
        synchronize()
        before, cpu_before = time.perf_counter(), time.process_time()
        self.open.close()
        found = call()
        synchronize()
        if self.window:
            self.open.enter_context(self.window())
        self.paused_s += time.perf_counter() - before
        self.paused_cpu_s += time.process_time() - cpu_before
        return found

    def cost(self) -> dict[str, Any]:
        """What a step costs.

        Raises:
            RuntimeError: the system ran fewer steps than it should.
        """
        steps = self.job.steps
        if self.done < self.job.warmup + steps:
            raise RuntimeError(f"the clock saw {self.done} of {self.job.warmup + steps} steps")
        if self.operations:
            operators, flops = (
                [after - before for before, after in zip(seen, seen[1:], strict=False)][-steps:]
                for seen in zip(*self.seen, strict=True)
            )
            return {"operators": statistics.median(operators), "flops": statistics.mean(flops)}
        timed = self.ended - self.began - self.paused_s
        cpu = self.cpu_ended - self.cpu_began - self.paused_cpu_s
        cost = {"step_s": timed / steps, "timed_s": timed, "cpu_s": cpu, "startup_s": self.began - self.called}
        if self.profiler:
            on_gpu = [event.name for event in self.profiler.events() if event.device_type.name == "CUDA"]
            cost["kernels"] = sum(not name.startswith(("Memcpy", "Memset")) for name in on_gpu) / steps
        return cost


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# The systems: each trains for warmup + steps steps and returns what it was given -------------------------------------


def by_lorakit(job: Job, clock: Clock, mode: str) -> Given:
    model, config = own_model(job, mode), own_config(job, mode, log_every=clock.every)
    data = NerData(job.sentences(), (), (), job.labels, "benchmark")

    def untimed(prepare: Any) -> Any:
        def call(engine: CompiledEngine | CudaGraphEngine, plan: Plan, targets: int) -> float | None:
            known = plan.source.shape in engine.ready
            return None if known else clock.pause(lambda: prepare(engine, plan, targets))

        return call

    with ExitStack() as patches:
        for engine in (CompiledEngine, CudaGraphEngine):
            patches.enter_context(mock.patch.object(engine, "prepare", untimed(engine.prepare)))
        result = lorakit.train(model, tokenizer_of(job), data, config, observe=lambda: (clock.step(clock.every), {})[1])
    encoded = encode_job(job, job.sentences())
    steps = own_steps(job, encoded)
    plans = [plan for step in steps for plan in step.micros]
    expected = (sum(plan.tokens for plan in plans), sum(plan.computed_tokens for plan in plans))
    if expected != (result.train_tokens, result.computed_tokens):
        raise RuntimeError("lorakit trained on other batches than those predicted from its order")
    real = [sum(plan.tokens for plan in step.micros) for step in steps]
    return Given.of(job, list(zip(real, own_shapes(job, encoded, steps), strict=True)))


def by_trainer(job: Job, clock: Clock, mode: str) -> Given:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    model, collator = peers_model(job, mode), Collator(job)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=job.batch_size,
            num_train_epochs=1,
            learning_rate=job.rates[mode],
            weight_decay=0.01,
            warmup_steps=0.06,
            bf16=job.precision == "bf16",
            fp16=job.precision == "fp16",
            use_cpu=not torch.cuda.is_available(),
            seed=job.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model, arguments, data_collator=collator, train_dataset=tokenise(job), callbacks=[Steps()]).train()
    return collator.given()


def by_accelerate(job: Job, clock: Clock, mode: str) -> Given:
    """The loop of run_ner_no_trainer.py."""
    from accelerate import Accelerator
    from transformers import get_scheduler

    accelerator = Accelerator(mixed_precision="no" if job.precision == "fp32" else job.precision)
    model, collator = peers_model(job, mode), Collator(job)
    loader = collator.loader()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=job.rates[mode])
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=1, num_training_steps=len(loader))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    model.train()
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        clock.step()
    return collator.given()


def by_loop(job: Job, clock: Clock, mode: str) -> Given:
    """The loop of PEFT's guide to token classification, whose only scheduler is a linear one."""
    from transformers import get_linear_schedule_with_warmup

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, collator = peers_model(job, mode).to(device).train(), Collator(job)
    loader = collator.loader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.rates[mode])
    scheduler = get_linear_schedule_with_warmup(optimizer, 1, len(loader))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(job.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=job.precision == "fp16")
    for batch in loader:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        clock.step()
    return collator.given()


SYSTEMS: dict[str, tuple[str, Callable[..., Given], str]] = {
    "lorakit-lora": ("lorakit, LoRA", by_lorakit, "lora"),
    "lorakit-full": ("lorakit, full", by_lorakit, "full"),
    "trainer-peft": ("HF Trainer + PEFT", by_trainer, "lora"),
    "trainer-full": ("HF Trainer, full", by_trainer, "full"),
    "accelerate-peft": ("accelerate + PEFT", by_accelerate, "lora"),
    "loop-peft": ("plain loop + PEFT", by_loop, "lora"),
}


def peers_model(job: Job, mode: str) -> nn.Module:
    """The model the other systems train: in mode "lora" PEFT's."""
    if mode == "full":
        return make_model(job)
    from peft import LoraConfig, TaskType, get_peft_model

    return get_peft_model(make_model(job), LoraConfig(task_type=TaskType.TOKEN_CLS, bias="none", **lora_of(job)))


def tokenise(job: Job) -> list[dict[str, list[int]]]:
    """As in run_ner.py: the label on a word's first subword, -100 elsewhere."""
    tokenizer, rows = tokenizer_of(job), []
    classes = {label: number for number, label in enumerate(job.labels)}
    for sentence in job.sentences():
        row = tokenizer(list(sentence.words), is_split_into_words=True, truncation=True, max_length=512)
        before, labels = None, []
        for word in row.word_ids():
            labels.append(classes[sentence.tags[word]] if word is not None and word != before else -100)
            before = word
        rows.append({"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": labels})
    return rows


class Collator:
    """The usual collator, which pads to the longest sentence; it records every batch's real tokens and shape."""

    def __init__(self, job: Job) -> None:
        from transformers import DataCollatorForTokenClassification

        self.job, self.seen = job, []
        multiple = None if job.precision == "fp32" else 8  # as in run_ner.py
        self.inner = DataCollatorForTokenClassification(tokenizer_of(job), pad_to_multiple_of=multiple)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.inner(rows))
        self.seen.append((int(batch["attention_mask"].sum()), [tuple(batch["input_ids"].shape)]))
        return batch

    def loader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(
            tokenise(self.job), shuffle=True, collate_fn=self, batch_size=self.job.batch_size
        )

    def given(self) -> Given:
        return Given.of(self.job, self.seen)


# Measuring ------------------------------------------------------------------------------------------------------------


class System:
    """One of SYSTEMS, with what its training costs.

    Args:
        alone: nothing else runs in this process, so its peak memory is the system's.
    """

    def __init__(self, name: str, job: Job, alone: bool = False) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        self.name, self.job, self.alone, self.fresh = name, job, alone, True

    def run(self, job: Job, clock: Clock) -> Given:
        _, train, mode = SYSTEMS[self.name]
        return train(job, clock, mode)

    def count(self) -> dict[str, Any]:
        """Operators and FLOPs of one step; with CUDA graphs, of the step that a graph records."""
        config = {name: value for name, value in self.job.train_config.items() if value != "cuda_graphs"}
        job = replace(self.job, warmup=1, steps=1, train_config=config)
        clock = Clock(job, counts=True)
        with clock.operations:
            given = self.run(job, clock)
        cost, predicted = clock.cost(), flops_of(job, self.name, given.shapes)
        return cost | {"counted_over_predicted_flops": None if predicted is None else cost["flops"] / predicted}

    def profile(self) -> dict[str, Any]:
        """The GPU's kernels of one step; None without a GPU."""
        if not torch.cuda.is_available():
            return {"kernels": None}
        job = replace(self.job, warmup=1, steps=1)
        clock = Clock(job, profiles=True)
        self.run(job, clock)
        return {"kernels": clock.cost()["kernels"]}

    def train(self, number: int = 0) -> dict[str, Any]:
        """Time, tokens, FLOPs, memory and energy of the steps of a round, which has its own sentences."""
        job, gpu = replace(self.job, seed=self.job.seed + number), torch.cuda.is_available()
        if self.alone and self.fresh and not gpu:  # load what torch loads at first use
            small = {"shape": "tiny", "target_modules": ("query", "value"), "lowest_layer": 0, "r": 4}
            tiny = replace(job, **small, batch_size=2, warmup=1, steps=1)
            self.run(tiny, Clock(tiny))
            release_memory()
        base = resident_bytes()
        reset_peak()
        with lorakit.EnergyMeter() as meter:
            clock = Clock(job, window=lambda: meter.window("steps"))
            given = self.run(job, clock)
        cost = clock.cost()
        peak = peak_bytes() if self.alone and (self.fresh or gpu) else None
        self.fresh = False
        return {
            **cost,
            "real_tokens": given.real,
            "computed_tokens": given.computed,
            "whole_tokens": given.whole,
            "flops": flops_of(job, self.name, given.shapes),
            "tokens_per_s": given.real / cost["timed_s"],
            "tokens_per_cpu_s": given.real / cost["cpu_s"],
            "padding": given.computed / given.real,
            "peak_bytes": peak if peak is None or gpu else peak - base,
            "resident_peak_bytes": None if gpu else peak,
            "energy": meter.windows["steps"].to_json(),
        }

"""Six ways to train the same token classifier, each through its own public interface, and what a step of each costs.

None of them gets a special loop: lorakit runs `lorakit.train`, Trainer `Trainer.train`, accelerate and plain PEFT the
loops of their guides. All get the same initial weights, sentences, learning rates and batch size, and call `Clock.step`
after every step (lorakit through `observe`, Trainer through a callback). Padding, mask, optimizer and order are each
system's own: they are what is compared. The other benchmarks build their corpus, model and configuration here, too.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from flops import Operations, predict_flops
from provenance import ROOT
from torch import nn

import lorakit
from lorakit.attention import blocks_of, blocks_pay
from lorakit.batching import Batch, Layout, Plan, Step, TokenTable, epoch_steps, in_long_rows, training_layout
from lorakit.encoding import Encoded, encode
from lorakit.graphs import StepGraphs
from lorakit.loss import Rehearsals
from lorakit.models import load_token_classifier
from lorakit.ner import NerData, Sentence

sys.path.insert(0, str(ROOT / "examples"))

from mini.corpus import LABELS, make_corpus

MINI = str(ROOT / "examples" / "mini")
MINI_RATES = {"full": 1e-3, "lora": 2e-3}  # found for the embedded base
SHAPES = {
    # roberta-base's 50,265 tokens, although the embedded tokenizer uses only the first 8,192 of them
    "roberta-base": {"vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                     "intermediate_size": 3072},
    # 13.8 M parameters, for scaling.py
    "small": {"vocab_size": 8192, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6,
              "intermediate_size": 1536},
    # a run of about a second, for faults.py
    "narrow": {"vocab_size": 8192, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 128},
    "tiny": {"vocab_size": 8192, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64},
    "mini": {},  # the embedded base with its own weights
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What every system is given: corpus, model and settings."""

    train: tuple[Sentence, ...]
    labels: tuple[str, ...]
    shape: str = "roberta-base"
    batch_size: int = 32
    warmup: int = 1  # steps before the clock starts
    steps: int = 6  # timed
    precision: str = "fp32"
    dropout: float = 0.1  # of the base, roberta's own default
    lora_dropout: float = 0.0
    r: int = 16
    lora_alpha: float = 16
    target_modules: tuple[str, ...] = ("query", "value")
    lowest_layer: int = 0  # first layer with LoRA
    rates: dict[str, float] = field(default_factory=lambda: {"full": 5e-5, "lora": 1e-3})
    seed: int = 0
    train_config: dict[str, Any] = field(default_factory=dict)  # more fields of lorakit's TrainConfig

    def sentences(self) -> tuple[Sentence, ...]:
        """As many sentences as the steps need, drawn from the corpus by the seed.

        Raises:
            ValueError: the corpus is too small.
        """
        wanted = self.batch_size * (self.warmup + self.steps)
        if wanted > len(self.train):
            raise ValueError(f"the steps need {wanted} sentences, the corpus has {len(self.train)}; use fewer steps")
        chosen = np.random.default_rng(self.seed).permutation(len(self.train))[:wanted]
        return tuple(self.train[i] for i in chosen)


def read_corpus(dataset: str, sentences: int | None = None) -> NerData:
    """Training and validation set of a folder or of the embedded corpus, with at most so many training sentences."""
    if dataset != "embedded":
        data = lorakit.read_ner(dataset)
        return NerData(data.train[:sentences], data.validation, (), data.labels, dataset)
    corpus = make_corpus(seed=0, train=sentences or 1500)
    train, validation = (tuple(Sentence(*pair) for pair in split) for split in (corpus.train, corpus.validation))
    return NerData(train, validation, (), tuple(LABELS), dataset)


def job_of(options: argparse.Namespace, data: NerData | None = None, **more: Any) -> Job:
    """The job that a benchmark's options ask for, on the data or on the corpus that they name."""
    data = data or read_corpus(options.dataset)
    given = {name: value for name, value in vars(options).items() if name in Job.__dataclass_fields__}
    job = Job(data.train, data.labels, **{**given, **more})
    return replace(job, target_modules=tuple(job.target_modules))


def config_of(job: Job) -> Any:
    """The model's configuration: the embedded base's, or a RobertaConfig of one of SHAPES."""
    from transformers import AutoConfig, RobertaConfig

    options = {
        "hidden_dropout_prob": job.dropout,
        "attention_probs_dropout_prob": job.dropout,
        "id2label": dict(enumerate(job.labels)),
        "label2id": {label: number for number, label in enumerate(job.labels)},
    }
    if job.shape == "mini":
        return AutoConfig.from_pretrained(MINI, **options)
    positions = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return RobertaConfig(**SHAPES[job.shape], **positions, **options)


def tokenizer_of(job: Job) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MINI)


def make_model(job: Job) -> nn.Module:
    """The base model; the same weights for every system."""
    if job.shape == "mini":
        return load_token_classifier(MINI, job.labels, seed=job.seed, dropout=job.dropout)[0]
    from transformers import RobertaForTokenClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        return RobertaForTokenClassification(config_of(job))


def lora_of(job: Job) -> dict[str, Any]:
    """The arguments that `apply_lora` and PEFT's LoraConfig share."""
    layers = list(range(job.lowest_layer, config_of(job).num_hidden_layers)) if job.lowest_layer else None
    return {
        "r": job.r,
        "lora_alpha": job.lora_alpha,
        "lora_dropout": job.lora_dropout,
        "target_modules": list(job.target_modules),
        "layers_to_transform": layers,
    }


def own_model(job: Job, mode: str, **more: Any) -> nn.Module:
    """The model lorakit trains: in mode "lora" with adapters, for which `more` overrides arguments of `apply_lora`."""
    model = make_model(job)
    if mode == "lora":
        lorakit.apply_lora(model, **{**lora_of(job), "seed": job.seed, **more})
    return model


def own_config(job: Job, mode: str, epochs: int = 1, **more: Any) -> lorakit.TrainConfig:
    """lorakit's configuration of a job; `more` are further fields of it."""
    return lorakit.TrainConfig(
        epochs=epochs,
        batch_size=job.batch_size,
        learning_rate=job.rates[mode],
        precision=job.precision,
        seed=job.seed,
        progress=False,
        **job.train_config,
        **more,
    )


# Rows and width of a batch, and its token pairs where lorakit's attention computes fewer than all pairs of each row
Shape = tuple[int, int] | tuple[int, int, int]


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
    """Times the steps after the warm-up, or counts or profiles their operators, which slows them down.

    Args:
        counts: count operators and FLOPs.
        profiles: measure time by kind of operator and, on a GPU, the number of kernels.
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
        self.paused_s = 0.0

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
            self.began = time.perf_counter()
        elif self.done == self.job.warmup + self.job.steps:
            synchronize()
            self.ended = time.perf_counter()
            self.open.close()
            if self.profiler:
                self.profiler.stop()

    def pause(self, call: Callable[[], Any]) -> Any:
        """Call something that is not part of a step, such as compiling, without measuring its time or energy."""
        if not self.job.warmup <= self.done < self.job.warmup + self.job.steps:
            return call()
        synchronize()
        before = time.perf_counter()
        self.open.close()
        found = call()
        synchronize()
        if self.window:
            self.open.enter_context(self.window())
        self.paused_s += time.perf_counter() - before
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
        cost = {"step_s": timed / steps, "timed_s": timed, "startup_s": self.began - self.called}
        if self.profiler:
            cost |= profiled(self.profiler, steps, timed)
        return cost


KINDS = {  # of operators, by parts of their names; the first match counts
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "::matmul", "linear_pointwise"),
    "attention in one operator": ("scaled_dot_product", "flash_attention"),
    "random numbers": ("bernoulli", "random_", "dropout"),
    "softmax, GELU, norms": ("softmax", "gelu", "layer_norm"),
}


def profiled(profiler: Any, steps: int, timed_s: float) -> dict[str, Any]:
    """Seconds per step by kind of operator, and CUDA kernels per step (None without a GPU)."""
    events = profiler.events()
    kernels = [e for e in events if e.device_type.name == "CUDA" and not e.name.startswith(("Memcpy", "Memset"))]
    seconds = dict.fromkeys([*KINDS, "optimiser and clipping", "other operators"], 0.0)
    for event in events:
        if event.device_type.name != "CPU":
            continue
        ancestor, kind = event, None
        while ancestor is not None and kind is None:
            if any(part in ancestor.name for part in ("Optimizer.step", "foreach", "vector_norm")):
                kind = "optimiser and clipping"
            ancestor = ancestor.cpu_parent
        kind = kind or next((k for k, parts in KINDS.items() if any(p in event.name for p in parts)), "other operators")
        seconds[kind] += event.self_cpu_time_total / 1e6 / steps
    seconds["between operators (Python, data)"] = max(0.0, timed_s / steps - sum(seconds.values()))
    return {"seconds_by_kind": seconds, "kernels": len(kernels) / steps if torch.cuda.is_available() else None}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# The systems: each trains for warmup + steps steps and returns what it was given -------------------------------------


def by_lorakit(job: Job, clock: Clock, mode: str) -> Given:
    model, config = own_model(job, mode), own_config(job, mode, log_every=clock.every)
    data = NerData(job.sentences(), (), (), job.labels, "benchmark")
    rehearse, record = Rehearsals.rehearse, StepGraphs.record

    def rehearse_untimed(loss: Rehearsals, batch: Batch, trained: Any) -> float | None:
        known = batch.input_ids.shape in loss.seen
        return rehearse(loss, batch, trained) if known else clock.pause(lambda: rehearse(loss, batch, trained))

    def record_untimed(graphs: StepGraphs, plan: Plan, targets: int) -> float | None:
        known = plan.source.shape in graphs.recorded
        return None if known else clock.pause(lambda: record(graphs, plan, targets))

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(Rehearsals, "rehearse", rehearse_untimed))
        patches.enter_context(mock.patch.object(StepGraphs, "record", record_untimed))
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


# Predictions ---------------------------------------------------------------------------------------------------------


def encode_job(job: Job, sentences: Sequence[Sentence]) -> Encoded:
    return encode(tokenizer_of(job), [s.words for s in sentences], 512, [s.tags for s in sentences], job.labels)


def in_blocks(job: Job) -> bool:
    """Whether lorakit uses its own attention, which computes only pairs within a sentence."""
    return not (torch.cuda.is_available() or job.precision != "fp32" or job.train_config.get("compile"))


def own_steps(job: Job, encoded: Encoded, whole: bool = False) -> list[Step]:
    """lorakit's steps of an epoch, which depend on the seed and, on a CPU, on the number of threads.

    Args:
        whole: do not compute a batch in parts.
    """
    layout = in_long_rows(Layout(2, 1), config_of(job).hidden_size) if in_blocks(job) else Layout(2, 1)
    compiled, recorded = (job.train_config.get(name, False) for name in ("compile", "cuda_graphs"))
    layout = training_layout(layout, encoded, job.batch_size, compiled, recorded, whole)
    return list(epoch_steps(encoded, layout, job.batch_size, 1, job.seed, 1))


def own_shapes(job: Job, encoded: Encoded, steps: Sequence[Step]) -> list[list[Shape]]:
    """Shapes of the batches of lorakit's steps, with the token pairs where it uses its own attention."""
    layout = Layout(2, 1)
    table = TokenTable(encoded, layout)

    def shape(plan: Plan) -> Shape:
        rows, width = plan.source.shape
        if in_blocks(job):
            blocks = blocks_of(layout.inputs(table.batch(plan))["attention_mask"], rows, 1, width)
            if blocks_pay(blocks, job.dropout):
                return (rows, width, blocks.scores)
        return (rows, width)

    return [[shape(plan) for plan in step.micros] for step in steps]


def shapes_of(job: Job, system: str) -> tuple[list[list[Shape]], int]:
    """Shapes of the steps of an epoch over at most 4,096 sentences of the corpus, and their real tokens."""
    chosen = np.random.default_rng(job.seed + 1).permutation(len(job.train))[:4096]
    encoded = encode_job(job, [job.train[i] for i in chosen])
    if system.startswith("lorakit"):
        steps = own_shapes(job, encoded, own_steps(job, encoded))
    else:
        chunks = np.split(encoded.lengths, range(job.batch_size, len(encoded), job.batch_size))
        multiple = 1 if job.precision == "fp32" else 8
        steps = [[(len(chunk), -(-int(chunk.max()) // multiple) * multiple)] for chunk in chunks]
    return steps, int(encoded.lengths.sum())


def flops_of(job: Job, system: str, shapes: Sequence[Shape]) -> int:
    """FLOPs of steps on batches of these shapes, predicted by flops.py."""
    return sum(
        predict_flops(
            config_of(job),
            rows,
            width,
            pairs=pairs[0] if pairs else None,
            targets=job.target_modules if SYSTEMS[system][2] == "lora" else None,
            r=job.r,
            lowest_layer=job.lowest_layer,
            may_merge=system.startswith("lorakit") and job.precision == "fp32" and not job.lora_dropout,
            one_attention_operator=not job.dropout,
        )
        for rows, width, *pairs in shapes
    )


def predict_cost(job: Job, system: str) -> dict[str, float]:
    """FLOPs per step and the padding factor, from the shapes alone."""
    steps, real = shapes_of(job, system)
    shapes = [shape for step in steps for shape in step]
    tokens = sum(rows * width for rows, width, *_ in shapes)
    return {
        "flops": flops_of(job, system, shapes) / len(steps),
        "padding": tokens / real,
        "real": real / len(steps),
        "parts": len(shapes) / len(steps),
    }

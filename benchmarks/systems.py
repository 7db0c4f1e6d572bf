"""Six ways to train the same token classifier, each by its own public interface, and what a step of each costs.

Nobody is timed by a special loop: lorakit by `lorakit.train`, Trainer by `Trainer.train`, accelerate and plain PEFT by
the loops of their guides. All get the same random weights, sentences, rates and batch size, and call `Clock.step` when
a step is done (lorakit by `observe`, Trainer by a callback). What they do with padding, mask, optimiser and order is
their own: that is what is compared.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import lorakit
from lorakit.batching import Layout, epoch_order, epoch_steps
from lorakit.encoding import encode
from lorakit.models import load_token_classifier
from lorakit.ner import NerData, Sentence

ROOT = Path(__file__).parent.parent
MINI = str(ROOT / "examples" / "mini")
SHAPES = {
    # 50,265 words as roberta-base has, though the embedded tokenizer uses the first 8,192 of them
    "roberta-base": {"vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                     "intermediate_size": 3072},
    "tiny": {"vocab_size": 8192, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64},
    "mini": {},  # the embedded base with its own weights
}  # fmt: skip
FAULTS = {
    "trainer": "Trainer multiplies this head's loss and gradients by accumulation x processes"
    " (transformers#47688); both are 1 here, so its losses are right in this table",
}


@dataclass(frozen=True)
class Job:
    """What every system is given."""

    train: tuple[Sentence, ...]
    labels: tuple[str, ...]
    shape: str = "roberta-base"
    batch_size: int = 32
    warmup: int = 1  # steps before the clock starts
    steps: int = 6  # that are timed
    precision: str = "fp32"
    dropout: float = 0.1  # of the base, roberta's own default
    lora_dropout: float = 0.0
    r: int = 16
    lora_alpha: float = 16
    target_modules: tuple[str, ...] = ("query", "value")
    rates: dict[str, float] = field(default_factory=lambda: {"full": 5e-5, "lora": 1e-3})
    seed: int = 0
    train_config: dict[str, Any] = field(default_factory=dict)  # more of lorakit's TrainConfig

    def sentences(self) -> tuple[Sentence, ...]:
        """As many as the steps need, a random choice of the corpus."""
        wanted = self.batch_size * (self.warmup + self.steps)
        if wanted > len(self.train):
            raise ValueError(f"{wanted} sentences are needed, the corpus has {len(self.train)}; give fewer steps")
        chosen = np.random.default_rng(self.seed).permutation(len(self.train))[:wanted]
        return tuple(self.train[i] for i in chosen)


def make_model(job: Job) -> tuple[nn.Module, Any]:
    """The model and its tokenizer; every system starts from the same weights."""
    if job.shape == "mini":
        return load_token_classifier(MINI, job.labels, seed=job.seed, dropout=job.dropout)
    from transformers import AutoTokenizer, RobertaConfig, RobertaForTokenClassification

    config = RobertaConfig(
        **SHAPES[job.shape],
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=job.dropout,
        attention_probs_dropout_prob=job.dropout,
        id2label=dict(enumerate(job.labels)),
        label2id={label: number for number, label in enumerate(job.labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = RobertaForTokenClassification(config)
    return model, AutoTokenizer.from_pretrained(MINI)


class Operations(TorchDispatchMode):
    """Counts what reaches the device: operators that make something new (no views), and their FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        returned = function._schema.returns
        self.operators += not any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        formula = flop_registry.get(function.overloadpacket)
        if formula:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


class Clock:
    """Times the steps after the warm-up; or counts the operators of each, which slows them.

    Args:
        window: makes a context that measures energy while the clock runs.
    """

    def __init__(self, job: Job, counts: bool = False, window: Callable[[], Any] | None = None) -> None:
        self.job, self.operations, self.window = job, Operations() if counts else None, window
        self.every = 1 if counts else job.warmup  # steps between two calls of `step`, where that is for us to choose
        self.done, self.seen, self.open = 0, [], ExitStack()
        self.profiler: Any = None
        self.kernels: float | None = None
        self.called = time.perf_counter()
        self.began = self.ended = self.called

    def step(self, steps: int = 1) -> None:
        self.done += steps
        if self.operations:
            self.seen.append((self.operations.operators, self.operations.flops))
        if self.done == self.job.warmup:
            synchronize()
            if self.operations and torch.cuda.is_available():
                self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
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
                on_device = [event for event in self.profiler.events() if event.device_type.name == "CUDA"]
                kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
                self.kernels = len(kernels) / self.job.steps

    def cost(self) -> dict[str, Any]:
        if self.done < self.job.warmup + self.job.steps:
            raise RuntimeError(f"the clock saw {self.done} of {self.job.warmup + self.job.steps} steps")
        if self.operations is None:
            return {
                "step_s": (self.ended - self.began) / self.job.steps,
                "timed_s": self.ended - self.began,
                "startup_s": self.began - self.called,
            }
        one, other = zip(
            *((b[0] - a[0], b[1] - a[1]) for a, b in zip(self.seen, self.seen[1:], strict=False)), strict=True
        )
        return {
            "operators": statistics.median(one[-self.job.steps :]),
            "flops": statistics.mean(other[-self.job.steps :]),
            "kernels": self.kernels,
        }


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# The systems: each trains for warmup + steps steps and returns (real, computed) tokens of the timed ones ------------


def by_lorakit(job: Job, clock: Clock, mode: str) -> tuple[int, int]:
    model, tokenizer = make_model(job)
    if mode == "lora":
        lorakit.apply_lora(
            model,
            r=job.r,
            lora_alpha=job.lora_alpha,
            lora_dropout=job.lora_dropout,
            target_modules=job.target_modules,
            seed=job.seed,
        )
    config = lorakit.TrainConfig(
        epochs=1,
        batch_size=job.batch_size,
        learning_rate=job.rates[mode],
        precision=job.precision,
        seed=job.seed,
        log_every=clock.every,
        progress=False,
        **job.train_config,
    )
    data = NerData(job.sentences(), (), (), job.labels, "benchmark")
    result = lorakit.train(model, tokenizer, data, config, observe=lambda: (clock.step(clock.every), {})[1])
    real = timed_tokens(job, tokenizer)
    return real, round(real * result.computed_tokens / result.train_tokens)


def by_trainer(job: Job, clock: Clock, mode: str) -> tuple[int, int]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    model, tokenizer = make_model(job)
    if mode == "lora":
        model = with_peft(job, model)
    rows, collator = tokenise(job, tokenizer), Collator(job, tokenizer)
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
        Trainer(model, arguments, data_collator=collator, train_dataset=rows, callbacks=[Steps()]).train()
    return collator.tokens()


def by_accelerate(job: Job, clock: Clock, mode: str) -> tuple[int, int]:
    """The loop of run_ner_no_trainer.py."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import get_scheduler

    accelerator = Accelerator(mixed_precision="no" if job.precision == "fp32" else job.precision)
    model, tokenizer = make_model(job)
    model = with_peft(job, model)
    collator = Collator(job, tokenizer)
    loader = DataLoader(tokenise(job, tokenizer), shuffle=True, collate_fn=collator, batch_size=job.batch_size)
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
    return collator.tokens()


def by_loop(job: Job, clock: Clock, mode: str) -> tuple[int, int]:
    """The loop of PEFT's guide to token classification, which has no scheduler of its own beyond a linear one."""
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = make_model(job)
    model = with_peft(job, model).to(device).train()
    collator = Collator(job, tokenizer)
    loader = DataLoader(tokenise(job, tokenizer), shuffle=True, collate_fn=collator, batch_size=job.batch_size)
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
    return collator.tokens()


SYSTEMS: dict[str, tuple[str, Callable[..., tuple[int, int]], str]] = {
    "lorakit-lora": ("lorakit, LoRA", by_lorakit, "lora"),
    "lorakit-full": ("lorakit, full", by_lorakit, "full"),
    "trainer-peft": ("HF Trainer + PEFT", by_trainer, "lora"),
    "trainer-full": ("HF Trainer, full", by_trainer, "full"),
    "accelerate-peft": ("accelerate + PEFT", by_accelerate, "lora"),
    "loop-peft": ("plain loop + PEFT", by_loop, "lora"),
}


def with_peft(job: Job, model: nn.Module) -> nn.Module:
    from peft import LoraConfig, TaskType, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.TOKEN_CLS,
            r=job.r,
            lora_alpha=job.lora_alpha,
            lora_dropout=job.lora_dropout,
            target_modules=list(job.target_modules),
            bias="none",
        ),
    )


def tokenise(job: Job, tokenizer: Any) -> list[dict[str, list[int]]]:
    """As run_ner.py does: the label on a word's first subword, -100 elsewhere."""
    classes, rows = {label: number for number, label in enumerate(job.labels)}, []
    for sentence in job.sentences():
        row = tokenizer(list(sentence.words), is_split_into_words=True, truncation=True, max_length=512)
        before, labels = None, []
        for word in row.word_ids():
            labels.append(classes[sentence.tags[word]] if word is not None and word != before else -100)
            before = word
        rows.append({"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": labels})
    return rows


class Collator:
    """The usual collator, padding to the longest; it notes real and computed tokens of each batch."""

    def __init__(self, job: Job, tokenizer: Any) -> None:
        from transformers import DataCollatorForTokenClassification

        self.job, self.seen = job, []
        multiple = None if job.precision == "fp32" else 8  # as run_ner.py
        self.inner = DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=multiple)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.inner(rows))
        self.seen.append((int(batch["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch

    def tokens(self) -> tuple[int, int]:
        timed = self.seen[self.job.warmup : self.job.warmup + self.job.steps]
        return sum(real for real, _ in timed), sum(computed for _, computed in timed)


# What the arithmetic alone predicts ---------------------------------------------------------------------------------


def encoded_lengths(job: Job, tokenizer: Any) -> np.ndarray:
    sentences = job.sentences()
    return encode(tokenizer, [s.words for s in sentences], 512).lengths


def timed_tokens(job: Job, tokenizer: Any) -> int:
    """Real tokens of lorakit's timed steps: its order is a function of the seed."""
    lengths = encoded_lengths(job, tokenizer)
    return int(lengths[epoch_order(len(lengths), job.seed, 1)][job.warmup * job.batch_size :].sum())


def widths(job: Job, tokenizer: Any, system: str) -> tuple[list[tuple[int, int]], int]:
    """(rows, width) of the batches of an epoch over up to 4,096 sentences of the corpus, and their real tokens."""
    chosen = np.random.default_rng(job.seed + 1).permutation(len(job.train))[:4096]
    encoded = encode(tokenizer, [job.train[i].words for i in chosen], 512)
    if system.startswith("lorakit"):
        steps = epoch_steps(encoded, Layout(2, 1), job.batch_size, 1, job.seed, 1)
        shapes = [tuple(micro.input_ids.shape) for step in steps for micro in step.micros]
    else:
        chunks = np.split(encoded.lengths, range(job.batch_size, len(encoded), job.batch_size))
        multiple = 1 if job.precision == "fp32" else 8
        shapes = [(len(chunk), -(-int(chunk.max()) // multiple) * multiple) for chunk in chunks]
    return shapes, int(encoded.lengths.sum())


def predict_cost(job: Job, system: str) -> dict[str, float]:
    """FLOPs a step and the padding factor, from the shapes alone.

    A matrix of P numbers costs 2P a token forward, 2P for its input's gradient and 2P for its own; frozen ones need no
    gradient of their own, and nothing below the lowest trained matrix is differentiated. Attention costs 4·width·hidden
    a token and layer forward and twice that backward.
    """
    model, tokenizer = make_model(job)
    mode, config = SYSTEMS[system][2], model.config
    shapes, real = widths(job, tokenizer, system)
    tokens = sum(rows * width for rows, width in shapes)
    layers = model.base_model.encoder.layer
    per_token = 0.0
    for number, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            size, lowest = module.weight.numel(), number == 0 and name.endswith(("query", "key", "value"))
            adapted = name.rsplit(".", 1)[-1] in job.target_modules
            if mode == "full":
                per_token += 6 * size
            else:
                per_token += 2 * size + (0 if lowest else 2 * size)
                if adapted:  # A and B: forward, their gradients, and z = gB; dx only above the lowest
                    down, up = job.r * module.in_features, job.r * module.out_features
                    per_token += 4 * down + 6 * up + (0 if lowest else 2 * down)
    per_token += 6 * model.classifier.weight.numel()
    products = 6 * len(layers)  # of width x width x hidden: two forward, four backward
    if mode == "lora" and "key" not in job.target_modules:
        products -= 1  # nothing below the lowest keys asks for their gradient
    attention = sum(rows * width * width for rows, width in shapes) * 2 * products * config.hidden_size
    return {
        "flops": (tokens * per_token + attention) / len(shapes),
        "padding": tokens / real,
        "real": real / len(shapes),
    }

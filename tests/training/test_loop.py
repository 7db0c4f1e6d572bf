import itertools
import json
import math
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import lorakit
from lorakit.data import packing as batching
from lorakit.data.corpus import NerData, Sentence
from lorakit.data.packing import UNIT, epoch_order
from lorakit.training.checkpoint import load_checkpoint
from lorakit.training.logger import SinceLog
from lorakit.training.loop import TrainConfig
from lorakit.training.optimizer import build_optimizer, rate_of
from tests.support.tiny import LABELS

NAMES = ["IL-2", "GATA-1", "NF-kappaB", "c-Fos", "Stat5", "TNF-alpha"]
PLAIN = ["the", "cells", "of", "activates", "in", "binding", "was", "increased", ".", ""]


def toy_sentences(count: int, seed: int) -> tuple[Sentence, ...]:
    """Half of the names are genes, mostly followed by that word; the others are proteins."""
    draw = np.random.default_rng(seed)
    sentences = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(draw.integers(1, 6)):
            words.append(str(draw.choice(PLAIN)))
            tags.append("O")
            if draw.random() < 0.6:
                name = str(draw.choice(NAMES))
                dna = name in NAMES[:3]
                words += [name] + ["gene"] * dna
                tags += ["B-DNA", "I-DNA"] if dna else ["B-protein"]
        sentences.append(Sentence(tuple(words), tuple(tags)))
    return tuple(sentences)


@pytest.fixture(scope="module")
def data():
    return NerData(toy_sentences(96, 0), toy_sentences(40, 1), toy_sentences(40, 2), LABELS, "toy")


def quick(**changes):
    return TrainConfig(**{"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "progress": False, **changes})


@contextmanager
def killed_after(steps):
    """Within the context a run is killed in the midst of a step, this many counted from now; None: it is not."""
    add, numbers = SinceLog.add, itertools.count(1)

    def die(self, *args):
        if next(numbers) == steps:
            raise KeyboardInterrupt
        add(self, *args)

    with mock.patch.object(SinceLog, "add", die):
        yield


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def step_lines(folder):
    return [line for line in read_log(folder) if line["event"] == "step"]


def read_log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def reference_losses(model, tokenizer, data, config, steps):
    """Fine-tuning as a textbook writes it: one padded batch, the model's own mask, plain AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, foreach=False)
    per_epoch = math.ceil(len(data.train) / config.batch_size)
    total = per_epoch * config.epochs
    warmup = math.ceil(config.warmup_ratio * total)
    model.train()
    losses = []
    for epoch in range(1, config.epochs + 1):
        order = epoch_order(len(data.train), config.seed, epoch)
        for start in range(0, len(order), config.batch_size):
            if len(losses) == steps:
                return losses
            sentences = [data.train[i] for i in order[start : start + config.batch_size]]
            words = [[word or "<unk>" for word in sentence.words] for sentence in sentences]
            inputs = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
            labels = torch.full_like(inputs["input_ids"], -100)
            for row, sentence in enumerate(sentences):
                ids = inputs.word_ids(row)
                for column, word in enumerate(ids):
                    if word is not None and word != ids[column - 1]:
                        labels[row, column] = LABELS.index(sentence.tags[word])
            rate = min((len(losses) + 1) / (warmup + 1), (total - len(losses)) / (total - warmup))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            logits = model(**inputs).logits
            loss = F.cross_entropy(logits.view(-1, len(LABELS)), labels.view(-1))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_thirty_steps_equal_a_plain_hand_written_loop(tiny_model, tokenizer, data, tmp_path, mode):
    config = quick(epochs=3, learning_rate=3e-3, log_every=1, output_dir=tmp_path)
    curves = []
    for run in ("ours", "reference"):
        model = tiny_model()
        if mode == "lora":
            lorakit.apply_lora(model, r=8, bias="all")
        if run == "ours":
            lorakit.train(model, tokenizer, data, config)
            curves.append([line["loss"] for line in step_lines(tmp_path)][:30])
        else:
            curves.append(reference_losses(model, tokenizer, data, config, 30))
    ours, reference = curves
    assert len(ours) == 30
    assert ours[-1] < 0.8 * ours[0]
    assert ours == pytest.approx(reference, abs=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_one_batch_equals_any_split_into_micro_batches(tiny_model, tokenizer, data, tmp_path, packing):
    runs = []
    for batch_size, accumulate in ((16, 1), (8, 2), (4, 4)):
        model = tiny_model()
        sizes = {"batch_size": batch_size, "accumulate": accumulate, "packing": packing}
        lorakit.train(model, tokenizer, data, quick(**sizes, epochs=1, log_every=1, output_dir=tmp_path))
        curve = [(line["loss"], line["grad_norm"]) for line in step_lines(tmp_path)]
        runs.append((np.array(curve), weights(model)))
    for curve, trained in runs[1:]:
        np.testing.assert_allclose(curve, runs[0][0], rtol=1e-3)
        np.testing.assert_allclose(curve[0], runs[0][0][0], rtol=1e-5)
        for name, expected in runs[0][1].items():
            if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which Adam blows up
                torch.testing.assert_close(trained[name], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_batch_in_parts_trains_as_the_whole_batch(tiny_model, tokenizer, data, tmp_path, monkeypatch, mode):
    """Also beside accumulation; and never more than about a part's tokens go through the model."""
    runs = []
    for part, accumulate in ((None, 1), (20, 1), (40, 2)):
        if part:
            monkeypatch.setattr(batching, "PART", 32 * part)
            monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        model, passes = tiny_model(), []  # tokens that go through the model at a time
        if mode == "lora":
            lorakit.apply_lora(model, r=4)

        def note(module, _, inputs, passes=passes):
            if module.training:
                passes.append(inputs["input_ids"].numel())

        model.register_forward_pre_hook(note, with_kwargs=True)
        sizes = {"batch_size": 16 // accumulate, "accumulate": accumulate}
        result = lorakit.train(model, tokenizer, data, quick(**sizes, epochs=1, log_every=1, output_dir=tmp_path))
        curve = [(line["loss"], line["grad_norm"]) for line in step_lines(tmp_path)]
        runs.append((np.array(curve), weights(model), result))
        assert sum(passes) == result.computed_tokens
        assert max(passes) <= (2 * part if part else 300)
        assert len(passes) >= result.steps * (3 if part else 1)
    (whole, expected, plain), *others = runs
    for curve, trained, result in others:
        np.testing.assert_allclose(curve, whole, rtol=1e-3)
        np.testing.assert_allclose(curve[0], whole[0], rtol=1e-5)
        assert (result.steps, result.train_tokens) == (plain.steps, plain.train_tokens)
        for name, value in expected.items():
            if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which Adam blows up
                torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-3)


def test_lora_changes_what_requires_grad_and_nothing_else_bit_for_bit(tiny_model, tokenizer, data):
    model = lorakit.apply_lora(tiny_model(), r=4)
    before, trainable = weights(model), {n for n, p in model.named_parameters() if p.requires_grad}
    lorakit.train(model, tokenizer, data, quick())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trainable
    assert {name.rsplit(".", 1)[-1] for name in trainable} == {"lora_A", "lora_B", "weight", "bias"}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiny_model, tokenizer, data):
    runs = []
    for seed in (0, 0, 1):
        model = tiny_model(dropout=0.1)
        lorakit.train(model, tokenizer, data, quick(seed=seed, epochs=1))
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_the_model_ends_with_the_best_epochs_weights(tiny_model, tokenizer, data):
    model = tiny_model()
    result = lorakit.train(model, tokenizer, data, quick(epochs=6, learning_rate=0.3, max_grad_norm=1e9))
    f1 = [scores.f1 for scores in result.history]
    assert result.best_epoch == 1 + f1.index(max(f1)) < 6, "choose a learning rate with which the last epoch is worse"
    assert lorakit.evaluate(model, tokenizer, data.validation) == result.validation == result.history[f1.index(max(f1))]
    assert lorakit.evaluate(model, tokenizer, data.test) == result.test


def test_patience_stops_early(tiny_model, tokenizer, data):
    result = lorakit.train(tiny_model(), tokenizer, data, quick(epochs=9, learning_rate=1e-9, patience=2))
    assert (result.best_epoch, result.epochs, len(result.history)) == (1, 3, 3)


def test_it_learns_the_toy_corpus(tiny_model, tokenizer, data):
    result = lorakit.train(tiny_model(), tokenizer, data, quick(epochs=6))
    assert result.test.f1 > 0.9


def test_tokens_are_counted_with_and_without_padding(tiny_model, tokenizer, data):
    result = lorakit.train(tiny_model(), tokenizer, data, quick())
    words = [[word or "<unk>" for word in sentence.words] for sentence in data.train]
    real = sum(len(ids) for ids in tokenizer(words, is_split_into_words=True)["input_ids"])
    assert result.train_tokens == 2 * real
    lengths = np.array([len(ids) for ids in tokenizer(words, is_split_into_words=True)["input_ids"]])
    orders = [epoch_order(len(words), 0, epoch) for epoch in (1, 2)]
    steps = [lengths[order[start : start + 8]].sum() for order in orders for start in range(0, len(words), 8)]
    assert result.computed_tokens == sum(-(-step // UNIT) * UNIT for step in steps)  # each step is one row
    assert (result.steps, result.epochs) == (24, 2)
    assert result.train_tokens_per_s == result.train_tokens / result.train_seconds


def test_metrics_jsonl_has_a_line_a_log_step_and_evaluation(tiny_model, tokenizer, data, tmp_path):
    config = quick(log_every=5, output_dir=tmp_path / "new" / "folder")
    result = lorakit.train(tiny_model(), tokenizer, data, config, observe=lambda: {"power_w": 61.0})
    lines = read_log(tmp_path / "new" / "folder")
    assert [line.get("step") for line in lines if line["event"] == "step"] == [5, 10, 12, 17, 22, 24]
    assert set(lines[0]) == {
        "event", "epoch", "step", "loss", "learning_rate", "grad_norm", "skipped", "tokens_per_s", "power_w",
        "wall_s",
    }  # fmt: skip
    assert [line["split"] for line in lines if line["event"] == "evaluation"] == ["validation", "validation", "test"]
    assert lines[-1]["f1"] == result.test.f1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32_and_keeps_weights_in_fp32(tiny_model, tokenizer, data, tmp_path, precision):
    losses = []
    for chosen in ("fp32", precision):
        model = lorakit.apply_lora(tiny_model(), r=4)
        lorakit.train(model, tokenizer, data, quick(precision=chosen, epochs=1, output_dir=tmp_path, log_every=1))
        losses.append([line["loss"] for line in step_lines(tmp_path)])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_gradients_are_clipped_after_unscaling(tiny_model, tokenizer, data, tmp_path):
    """fp16 scales the loss by 65536; clipping the scaled gradients would shrink every step to nothing."""
    norms = []
    for precision in ("fp32", "fp16"):
        config = quick(precision=precision, epochs=1, output_dir=tmp_path, log_every=1)
        lorakit.train(tiny_model(), tokenizer, data, config)
        norms.append([line["grad_norm"] for line in step_lines(tmp_path)][:3])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_matrices_decay_and_vectors_do_not(tiny_model):
    model = tiny_model()
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.3)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[p] for name, p in model.named_parameters()} == {
        name: 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.3 for name, _ in model.named_parameters()
    }


def test_the_rate_rises_then_falls_towards_zero():
    rates = [rate_of(step, 10, highest=2.0, warmup_ratio=0.2) for step in range(10)]
    assert rates == pytest.approx([2 / 3, 4 / 3, 2.0, 14 / 8, 12 / 8, 10 / 8, 1.0, 6 / 8, 4 / 8, 2 / 8])


def test_evaluation_does_not_depend_on_how_sentences_lie_in_batches(tiny_model, tokenizer, data, monkeypatch):
    model = tiny_model()
    together = lorakit.evaluate(model, tokenizer, data.test)
    monkeypatch.setattr("lorakit.training.evaluation.EVALUATION_TOKENS", 1)
    alone = lorakit.evaluate(model, tokenizer, data.test, packing=False)
    assert alone.loss == pytest.approx(together.loss, abs=1e-6)
    assert replace(alone, loss=None) == replace(together, loss=None)


def test_evaluation_keeps_modes_and_gradients_as_they_were(tiny_model, tokenizer, data):
    model = tiny_model(dropout=0.5).train()
    model.classifier.eval()
    modes = [m.training for m in model.modules()]
    assert lorakit.evaluate(model, tokenizer, data.test) == lorakit.evaluate(model, tokenizer, data.test)
    assert [m.training for m in model.modules()] == modes


def test_predict_gives_a_tag_for_every_word_even_odd_and_beyond_the_window(tiny_model, tokenizer):
    sentences = [["IL-2", "", "gene"], [], ["\u200b"], ["interleukin"] * 700]
    tags = lorakit.predict(tiny_model(), tokenizer, sentences)
    assert [len(row) for row in tags] == [3, 0, 1, 700]
    assert {tag for row in tags for tag in row} <= set(LABELS)


def test_each_split_is_tokenised_once_a_run_however_many_epochs(tiny_model, tokenizer, data):
    seen = []

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **options):
            if options.get("split_special_tokens"):  # a corpus' distinct words; the other calls are probes of a word
                seen.append(len(text))
            return tokenizer(text, **options)

    lorakit.train(tiny_model(), Counting(), data, quick(epochs=4))
    distinct = [len({word for s in split for word in s.words}) for split in (data.train, data.validation, data.test)]
    assert seen == distinct


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs is 0; it must be a whole number of at least 1"),
        ("batch_size", 1.5, "batch_size is 1.5"),
        ("accumulate", True, "accumulate is True"),
        ("patience", -1, "patience is -1"),
        ("learning_rate", 0.0, "learning_rate 0.0 and max_grad_norm 1.0 must be above 0"),
        ("learning_rate", float("nan"), "learning_rate is nan; it must be a number from 0 to inf"),
        ("learning_rate", "1e-3", "learning_rate is '1e-3'"),
        ("warmup_ratio", 1.5, "warmup_ratio is 1.5; it must be a number from 0 to 1"),
        ("weight_decay", -0.1, "weight_decay is -0.1"),
        ("precision", "int8", "precision is 'int8'; it must be one of auto, fp32, bf16, fp16"),
        ("resume", True, "resume and save_every need output_dir"),
        ("save_every", 0, "save_every is 0"),
        ("strategy", "deepspeed", "strategy is 'deepspeed'; it must be one of ddp, fsdp"),
    ],
)
def test_settings_out_of_range_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_a_model_with_other_labels_is_refused(tiny_model, tokenizer, data):
    with pytest.raises(ValueError, match=r"the model's labels are \['O', 'B-DNA'.*id2label=dict"):
        lorakit.train(tiny_model(), tokenizer, replace(data, labels=LABELS[::-1]), quick())


def test_half_precision_parameters_are_refused(tiny_model, tokenizer, data):
    with pytest.raises(ValueError, match=r"is torch.float16.*dtype=torch.float32"):
        lorakit.train(tiny_model().half(), tokenizer, data, quick())


def test_nothing_to_train_is_refused(tiny_model, tokenizer, data):
    with pytest.raises(ValueError, match="nothing to train"):
        lorakit.train(tiny_model().requires_grad_(False), tokenizer, data, quick())
    with pytest.raises(ValueError, match="no training sentence"):
        lorakit.train(tiny_model(), tokenizer, replace(data, train=()), quick())
    with pytest.raises(ValueError, match="no sentence to evaluate"):
        lorakit.evaluate(tiny_model(), tokenizer, ())


def test_steps_without_a_finite_gradient_are_skipped_counted_and_end_the_run(tiny_model, tokenizer, data, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    before = weights(model)
    with pytest.raises(FloatingPointError, match=r"the last 22 steps up to step 22 had no finite gradient .*precision"):
        lorakit.train(model, tokenizer, data, quick(output_dir=tmp_path, epochs=4))
    assert [(line["loss"], line["skipped"]) for line in step_lines(tmp_path)] == [(None, 10), (None, 12), (None, 22)]
    assert all(torch.equal(p, before[name]) or name == "classifier.bias" for name, p in model.named_parameters())


def test_a_run_that_gives_up_leaves_the_state_before_the_bad_steps(tiny_model, tokenizer, data, tmp_path):
    """No checkpoint was due before; one that goes on from it and finds finite gradients again comes to its end."""
    model, calls = tiny_model(), []

    def spoil(module, inputs, output):
        calls.append(module.training)
        if module.training and calls.count(True) > 5:
            output.logits.mul_(float("inf"))

    hook = model.register_forward_hook(spoil)
    config = quick(output_dir=tmp_path, batch_size=2, log_every=5)
    with pytest.raises(FloatingPointError, match=r"the last 20 steps up to step 25 .*; the state before them is in"):
        lorakit.train(model, tokenizer, data, config)
    hook.remove()
    (only,) = (tmp_path / "checkpoints").iterdir()
    saved = load_checkpoint(tmp_path / "checkpoints").tensors
    assert only.name == "step-00000025"
    assert all(torch.equal(saved[f"model/{name}"], p) for name, p in model.named_parameters())
    result = lorakit.train(tiny_model(), tokenizer, data, replace(config, resume=True))
    assert (result.steps, result.skipped_steps) == (96, 20)
    steps = [line["step"] for line in step_lines(tmp_path)]
    assert steps == sorted(set(steps)) and steps[-1] == 96


def test_one_bad_step_is_skipped_and_the_run_goes_on(tiny_model, tokenizer, data, tmp_path):
    model = tiny_model()
    calls = []

    def spoil(module, inputs, output):
        if module.training:
            calls.append(1)
            if len(calls) == 3:
                output.logits.mul_(float("inf"))

    model.register_forward_hook(spoil)
    result = lorakit.train(model, tokenizer, data, quick(output_dir=tmp_path, epochs=6))
    assert (result.skipped_steps, result.steps) == (1, 72)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert result.test.f1 > 0.9


def test_a_batch_that_does_not_fit_is_named_with_what_to_change(tiny_model, tokenizer, data, tmp_path, monkeypatch):
    model = tiny_model()

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lorakit.training.loop.LossSum.forward", full)
    with pytest.raises(MemoryError, match=r"in step 1 with \d rows of \d+ tokens; halve batch_size \(8\) and double"):
        lorakit.train(model, tokenizer, data, quick(output_dir=tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000000"]
    monkeypatch.setattr(batching, "PART", 32 * 10)
    with pytest.raises(MemoryError, match="in step 1 with 1 rows of .* a smaller batch would not help"):
        lorakit.train(tiny_model(), tokenizer, data, quick())

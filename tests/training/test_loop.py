"""The loop trains as a textbook loop does, however a step is cut into batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig

import lorakit
from lorakit.data.decoding import KEY
from lorakit.data.packing import epoch_order
from lorakit.training import layout, loop
from lorakit.training.layout import UNIT
from tests.support.tiny import LABELS, ROOT
from tests.support.toy import quick, step_lines, weights


def reference_losses(model, tokenizer, data, config, steps):
    """Fine-tuning as in a textbook: one padded batch, the model's own mask, plain AdamW."""
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
    config = quick(epochs=3, learning_rate=3e-3, log_every=1, output_dir=tmp_path, overwrite=True)
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
        sizes = {"batch_size": batch_size, "accumulate": accumulate, "packing": packing, "overwrite": True}
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
            monkeypatch.setattr(layout, "PART_ELEMENTS", 32 * part)
            monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        model, passes = tiny_model(), []  # tokens that go through the model at a time
        if mode == "lora":
            lorakit.apply_lora(model, r=4)

        def note(module, _, inputs, passes=passes):
            if module.training:
                passes.append(inputs["input_ids"].numel())

        model.register_forward_pre_hook(note, with_kwargs=True)
        sizes = {"batch_size": 16 // accumulate, "accumulate": accumulate, "overwrite": True}
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
    result = lorakit.train(model, tokenizer, data, quick(epochs=6, learning_rate=0.07, max_grad_norm=1e9))
    best = max(range(6), key=lambda epoch: (result.history[epoch].f1, -result.history[epoch].loss))
    assert result.best_epoch == 1 + best < 6, "choose a learning rate with which the last epoch is worse"
    assert lorakit.evaluate(model, tokenizer, data.validation) == result.validation == result.history[best]
    assert lorakit.evaluate(model, tokenizer, data.test) == result.test


@pytest.mark.parametrize(("decode", "used"), [("auto", "viterbi"), ("viterbi", "viterbi"), ("greedy", "greedy")])
def test_a_run_is_scored_with_its_decoder_which_is_remembered(tiny_model, tokenizer, data, tmp_path, decode, used):
    model = lorakit.apply_lora(tiny_model(), r=2)
    result = lorakit.train(model, tokenizer, data, quick(epochs=1, decode=decode))
    scores = {name: lorakit.evaluate(model, tokenizer, data.test, decode=name) for name in ("viterbi", "greedy")}
    assert scores["viterbi"] != scores["greedy"], "train less, so that greedy tags break the scheme"
    assert result.test == lorakit.evaluate(model, tokenizer, data.test) == scores[used]
    lorakit.save_adapter(model, tmp_path / "adapter")
    loaded = lorakit.load_adapter(tiny_model(), tmp_path / "adapter")
    assert lorakit.evaluate(loaded, tokenizer, data.test) == scores[used]
    model.save_pretrained(tmp_path / "whole")
    assert getattr(AutoConfig.from_pretrained(tmp_path / "whole"), KEY, "greedy") == used


def test_patience_stops_early(tiny_model, tokenizer, data):
    result = lorakit.train(tiny_model(), tokenizer, data, quick(epochs=9, learning_rate=1e-30, patience=2))
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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32_and_keeps_weights_in_fp32(tiny_model, tokenizer, data, tmp_path, precision):
    losses = []
    for chosen in ("fp32", precision):
        model = lorakit.apply_lora(tiny_model(), r=4)
        lorakit.train(
            model, tokenizer, data, quick(precision=chosen, epochs=1, output_dir=tmp_path / chosen, log_every=1)
        )
        losses.append([line["loss"] for line in step_lines(tmp_path / chosen)])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_gradients_are_clipped_after_unscaling(tiny_model, tokenizer, data, tmp_path):
    """fp16 scales the loss by 65536; clipping the scaled gradients would shrink every step to nothing."""
    norms = []
    for precision in ("fp32", "fp16"):
        config = quick(precision=precision, epochs=1, output_dir=tmp_path, log_every=1, overwrite=True)
        lorakit.train(tiny_model(), tokenizer, data, config)
        norms.append([line["grad_norm"] for line in step_lines(tmp_path)][:3])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_each_split_is_tokenized_once_per_run_however_many_epochs(tiny_model, tokenizer, data):
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about CPUs")
@pytest.mark.parametrize(
    "settings", [{}, {"accumulate": 2}, {"precision": "bf16"}, {"packing": False}], ids=["fp32", "2", "bf16", "plain"]
)
def test_kernels_are_made_once_for_every_shape_of_the_epoch_if_packed(
    tiny_model, tokenizer, data, monkeypatch, settings
):
    asked, seen, units = [], set(), []
    few = layout.with_few_shapes
    monkeypatch.setattr(layout, "with_few_shapes", lambda *given: units.append(given[-1]) or few(*given))

    def remember(module, _args, options):
        if torch.is_grad_enabled() and module.training:
            seen.add(tuple(options["input_ids"].shape))

    monkeypatch.setattr(loop, "make_kernels", lambda _model, shapes: asked.append(set(shapes)))
    model = tiny_model()
    model.register_forward_pre_hook(remember, with_kwargs=True)
    lorakit.train(model, tokenizer, data, quick(epochs=1, **settings))
    long_rows = settings != {"packing": False}
    assert asked == ([seen] if long_rows else [])
    assert units == ([UNIT] if long_rows else [])
    lorakit.train(model, tokenizer, data, quick(epochs=2, **settings))
    assert len(asked) == (2 if long_rows else 0)  # once a run


def test_a_model_with_other_labels_is_refused(tiny_model, tokenizer, data):
    with pytest.raises(ValueError, match=r"the model's labels are \['O', 'B-DNA'.*id2label=dict"):
        lorakit.train(tiny_model(), tokenizer, replace(data, labels=LABELS[::-1]), quick())


def test_a_corpus_that_was_not_read_is_refused_with_the_call_that_reads_it(tiny_model, tokenizer):
    folder = str(ROOT / "examples" / "conll")
    with pytest.raises(ValueError, match="data is a str, not a corpus; give lorakit.read_ner") as error:
        lorakit.train(tiny_model(), tokenizer, folder, quick())
    assert eval(str(error.value).rsplit("give ", 1)[1]).train == lorakit.read_ner(folder).train
    with pytest.raises(ValueError, match="data is a list, not a corpus; give what lorakit.read_ner gives"):
        lorakit.train(tiny_model(), tokenizer, [], quick())


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

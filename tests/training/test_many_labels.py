"""Runs whose corpora have labels of their own share a step with others, and are what each is alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoTokenizer

import lorakit
from lorakit import AdapterRun
from lorakit.data.ner_data import NerData, Sentence
from lorakit.data.tags import labels_of_types
from lorakit.training.models import load_tagger, load_token_classifier
from lorakit.training.stacked_parameters import StackedParameters
from tests.support.tiny import MINI, make_tiny_model
from tests.support.toy import quick, read_log, step_lines, toy_data

DATA = toy_data(12, 4, 3)


def corpus_of_types(count, seed=0, sentences=(12, 4, 3), elided=False):
    """A corpus of so many entity types: the words "t0", "t1", … are entities of their types, the others are none."""
    draw, types = np.random.default_rng(seed), [f"{'ABCDEFGH'[number]}{count}" for number in range(count)]

    def sentence():
        words, tags = ["l'", "hôpital"] * elided, ["O", "O"] * elided
        for _ in range(draw.integers(2, 9)):
            kind = int(draw.integers(-1, count))
            words += ["the"] if kind < 0 else [f"t{kind}", "gene"]
            tags += ["O"] if kind < 0 else [f"B-{types[kind]}", f"I-{types[kind]}"]
        return Sentence(tuple(words), tuple(tags))

    splits = [tuple(sentence() for _ in range(size)) for size in sentences]
    return NerData(*splits, labels_of_types(types), "types")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A base without a head."""
    folder = tmp_path_factory.mktemp("base") / "base"
    make_tiny_model().roberta.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def together(folder, out, runs, resume=False, **options):
    """The model that trained all runs, its tokenizer, and their results."""
    changes = {"log_every": 1, "resume": resume}
    runs = [replace(run, config=replace(run.config, output_dir=out / run.name, **changes)) for run in runs]
    model, tokenizer = load_token_classifier(folder, DATA.labels)
    return model, tokenizer, lorakit.train_many(model, tokenizer, DATA, runs, **options)


def alone(folder, out, run):
    """The run by `load_token_classifier`, `apply_lora`, `train` and `save_adapter`, as the command line does it."""
    data = run.data or DATA
    seed = run.config.seed if run.data else 0  # runs without labels of their own have the model's head
    model, tokenizer = load_token_classifier(folder, data.labels, seed)
    lorakit.apply_lora(model, **run.lora)
    result = lorakit.train(model, tokenizer, data, replace(run.config, output_dir=out, log_every=1))
    lorakit.save_adapter(model, out / "adapter", metrics={"validation": result.validation.f1})
    return result


def assert_as_alone(folder, out, runs, **options):
    model, tokenizer, results = together(folder, out, runs, **options)
    for run in runs:
        result, mine, theirs = alone(folder, out / "alone" / run.name, run), out / run.name, out / "alone" / run.name
        lines, expected = step_lines(mine)[:30], step_lines(theirs)[:30]
        assert lines[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-5)
        assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=1e-5)
        for name in ("epochs", "steps", "best_epoch", "train_tokens"):
            assert getattr(results[run.name], name) == getattr(result, name), (run.name, name)
        for split in ("validation", "test"):
            one, other = getattr(results[run.name], split), getattr(result, split)
            assert one.loss == pytest.approx(other.loss, rel=1e-4)
            assert one.by_type.keys() == other.by_type.keys() and one.f1 == pytest.approx(other.f1)
        assert_same_adapter(mine / "adapter", theirs / "adapter")
        tagger, _ = load_tagger(mine / "adapter", folder)
        lorakit.set_adapter(model, run.name)
        texts = [sentence.words for sentence in (run.data or DATA).test]
        assert lorakit.predict(model, tokenizer, texts) == lorakit.predict(tagger, tokenizer, texts)


def assert_same_adapter(mine, theirs):
    """The files say the same, and the tensors have the same names, shapes and, up to rounding, values."""
    assert (mine / "adapter_config.json").read_bytes() == (theirs / "adapter_config.json").read_bytes()
    own, other = (json.loads((path / "lorakit.json").read_text()) for path in (mine, theirs))
    assert {**own, "files": 0, "digest": 0} == {**other, "files": 0, "digest": 0}
    own, other = (load_file(path / "adapter_model.safetensors") for path in (mine, theirs))
    assert own.keys() == other.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=2e-4)


def test_runs_of_several_label_sets_are_each_what_it_is_alone(folder, tmp_path):
    """Two at a time; the fewest labels come last, where the output layer has room for more than any run needs."""
    config = quick(learning_rate=1e-3, batch_size=5)
    runs = [
        AdapterRun("common", {"r": 2}, config),
        AdapterRun("more", {"r": 4}, replace(config, seed=3), corpus_of_types(4)),
        AdapterRun("same", {"r": 2}, config, replace(DATA, train=DATA.train[:7])),
        AdapterRun("elided", {"r": 1}, replace(config, epochs=1), corpus_of_types(2, 1, (20, 3, 3), elided=True)),
        AdapterRun("few", {"r": 3}, replace(config, decode="auto", epochs=3), corpus_of_types(1)),
    ]
    # the lone run of a corpus with the model's labels begins with the model's head
    runs[2] = replace(runs[2], config=replace(config, seed=0))
    assert_as_alone(folder, tmp_path, runs, at_once=2)
    words = [
        json.loads((tmp_path / name / "adapter" / "lorakit.json").read_text()).get("words")
        for name in ("elided", "few")
    ]
    assert words == [{"elisions": True}, None]


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(3, 7)), min_size=1, max_size=4), st.booleans()
)
def test_any_numbers_of_labels(folder, tmp_path_factory, drawn, packing):
    runs = [
        AdapterRun(
            f"run {number}",
            {"r": r, "seed": number},
            quick(learning_rate=1e-3, batch_size=size, seed=number, epochs=1, packing="on" if packing else "off"),
            corpus_of_types(types, number),
        )
        for number, (types, r, size) in enumerate(drawn)
    ]
    assert_as_alone(folder, tmp_path_factory.mktemp("any"), runs)


def test_the_gradients_of_each_run_are_those_it_has_alone(folder, tmp_path, monkeypatch):
    """Tensor by tensor, as training sees them first."""
    config = quick(epochs=1, batch_size=12, max_grad_norm=1e9)
    runs = [AdapterRun(f"{types}", {"r": types}, config, corpus_of_types(types)) for types in (1, 3)]
    step, mine, lone = StackedParameters.step, [], []

    def watched(self, grad, *given):
        mine.extend(dict(self._views(grad.clone(), row)) for row in range(len(self)))
        return step(self, grad, *given)

    monkeypatch.setattr(StackedParameters, "step", watched)
    together(folder, tmp_path, runs)
    for run in runs:
        model, tokenizer = load_token_classifier(folder, run.data.labels, run.config.seed)
        lorakit.apply_lora(model, **run.lora)
        names, grads = {parameter: name for name, parameter in model.named_parameters()}, {}

        def keep(optimizer, *given, names=names, grads=grads):
            grads.update({names[p]: p.grad.clone() for group in optimizer.param_groups for p in group["params"]})

        hook = register_optimizer_step_pre_hook(keep)
        lorakit.train(model, tokenizer, run.data, config)
        hook.remove()
        lone.append(grads)
    for own, other in zip(mine, lone, strict=True):
        assert own.keys() == other.keys()
        size = max(float(grad.norm()) for grad in other.values())
        for name, grad in other.items():
            assert float((own[name] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-8 * size, name


def test_what_is_no_label_of_a_run_has_no_weights_and_no_gradient(folder, tmp_path, monkeypatch):
    step, seen = StackedParameters.step, []

    def watched(self, grad, *given):
        part = next(part for part in self.parts if part.parameter == "classifier.weight")
        seen.append((grad[:, part.columns].view(-1, *part.shape), self.values[:, part.columns].view(-1, *part.shape)))
        return step(self, grad, *given)

    monkeypatch.setattr(StackedParameters, "step", watched)
    config = quick(epochs=1, weight_decay=0.5)
    runs = [AdapterRun(f"{types}", {"r": 1}, config, corpus_of_types(types)) for types in (1, 3)]
    together(folder, tmp_path, runs)
    for grad, values in seen:
        assert grad[0, :3].abs().amin(1).gt(0).all() and grad[1].abs().amax(1).gt(0).all()
        assert not grad[0, 3:].any() and not values[0, 3:].any()


@pytest.mark.skipif(not hasattr(torch.cuda, "waits"), reason="runs on the fake GPU, started by another test")
def test_a_gpu_is_waited_for_at_log_lines_only(monkeypatch):
    """Two of three runs log every third step."""
    step, waited = StackedParameters.step, []

    def watched(self, *given):
        waited.append(torch.cuda.waits())  # since the last call
        return step(self, *given)

    monkeypatch.setattr(StackedParameters, "step", watched)
    config = quick(epochs=1, batch_size=2, log_every=3, learning_rate=1e-3)
    data = replace(DATA, train=toy_data(20, 0, 0).train)
    runs = [AdapterRun(name, {"r": 2, "lora_dropout": 0.1}, config) for name in ("a", "b")]
    runs.append(AdapterRun("own", {"r": 2}, replace(config, log_every=100), corpus_of_types(3, sentences=(20, 4, 3))))
    lorakit.train_many(make_tiny_model(dropout=0.1), AutoTokenizer.from_pretrained(MINI), data, runs)
    assert [number for number, found in enumerate(waited[1:], start=1) if found] == [3, 6, 9], waited[1:]


def test_each_adapter_brings_its_labels_and_the_base_keeps_its_own(folder, tmp_path):
    config = quick(epochs=1)
    runs = [AdapterRun("own", {"r": 2}, config, corpus_of_types(3)), AdapterRun("common", {"r": 2}, config)]
    model, tokenizer, _ = together(folder, tmp_path, runs)
    before = load_token_classifier(folder, DATA.labels)[0]
    before.config.lorakit_decode = "viterbi"  # as `train` leaves it for these labels
    texts, own = [sentence.words for sentence in DATA.test], list(corpus_of_types(3).labels)
    labels = lambda: [model.config.id2label[number] for number in range(model.config.num_labels)]  # noqa: E731
    assert labels() == list(DATA.labels)
    lorakit.set_adapter(model, "own")
    assert labels() == own and model.num_labels == model.classifier.out_features == len(own)
    assert model.config.label2id == {label: number for number, label in enumerate(own)}
    with lorakit.disable_lora(model):
        assert labels() == list(DATA.labels)
        assert lorakit.predict(model, tokenizer, texts) == lorakit.predict(before, tokenizer, texts)
    tags = lorakit.predict(model, tokenizer, texts)
    assert labels() == own and {tag for row in tags for tag in row} <= set(own)
    with pytest.raises(
        ValueError, match=r"'common' cannot share a batch with 'own'.* their labels.* call set_adapter\(m"
    ):
        lorakit.predict(model, tokenizer, texts, adapters=["common"] * len(texts))
    with pytest.raises(ValueError, match=r"'__base__' cannot share a batch with 'own'.* use disable_lora\(model\)"):
        lorakit.predict(model, tokenizer, texts, adapters=["__base__"] * len(texts))
    with pytest.raises(
        ValueError, match="adapter 'own' has labels of its own .O, B-A3, .* combine adapters with the ba"
    ):
        lorakit.combine_adapters(model, {"own": 1.0, "common": 1.0}, "both")
    with lorakit.disable_lora(model):
        assert lorakit.predict(model, tokenizer, texts) == lorakit.predict(before, tokenizer, texts)
    lorakit.set_adapter(model, "common")
    common = lorakit.predict(model, tokenizer, texts)
    assert lorakit.predict(model, tokenizer, texts, adapters=["common"] * len(texts)) == common
    lorakit.combine_adapters(model, {"common": 1.0}, "copy")
    lorakit.set_adapter(model, "copy")
    assert lorakit.predict(model, tokenizer, texts) == common
    lorakit.set_adapter(model, "own")
    lorakit.remove_lora(model, merge=True)
    assert labels() == own and lorakit.predict(model, tokenizer, texts) == tags
    model.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    merged, _ = load_token_classifier(tmp_path / "merged", None)
    assert lorakit.predict(merged, tokenizer, texts) == tags


def test_the_base_is_as_before_without_the_adapters(folder, tmp_path):
    model, _, _ = together(folder, tmp_path, [AdapterRun("own", {"r": 2}, quick(epochs=1), corpus_of_types(1))])
    before = load_token_classifier(folder, DATA.labels)[0]
    before.config.lorakit_decode = "viterbi"  # as `train` leaves it for these labels
    assert model.config.num_labels == 3
    lorakit.remove_lora(model)
    assert model.config.to_dict() == before.config.to_dict() and model.num_labels == model.classifier.out_features == 5
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_runs_of_several_label_sets_that_are_killed_continue_bit_for_bit(folder, tmp_path, monkeypatch):
    config = quick(epochs=2, batch_size=5)
    runs = [
        AdapterRun("more", {"r": 2}, config, corpus_of_types(4)),
        AdapterRun("few", {"r": 1}, replace(config, epochs=1), corpus_of_types(1)),
        AdapterRun("common", {"r": 2}, config),
    ]

    def outcome(out, results):
        tensors = {run.name: load_file(out / run.name / "adapter" / "adapter_model.safetensors") for run in runs}
        kept = ("step", "loss", "f1", "event", "grad_norm")
        lines = {run.name: [[line.get(key) for key in kept] for line in read_log(out / run.name)] for run in runs}
        return lines, {name: {key: x.tolist() for key, x in found.items()} for name, found in tensors.items()}

    *_, results = together(folder, tmp_path / "whole", runs, at_once=2)
    expected, step = outcome(tmp_path / "whole", results), StackedParameters.step
    for call in (2, 4, 8):
        numbers = iter(range(1, 100))

        def die(self, *given, call=call, numbers=numbers):
            if next(numbers) == call:
                raise KeyboardInterrupt
            return step(self, *given)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(StackedParameters, "step", die)
            together(folder, tmp_path / str(call), runs, at_once=2)
        *_, results = together(folder, tmp_path / str(call), runs, resume=True, at_once=2)
        assert outcome(tmp_path / str(call), results) == expected

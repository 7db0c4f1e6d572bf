"""Caching the frozen lower layers' output: the same training, without computing them again."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lorakit
from lorakit.data.packing import collate
from lorakit.training.evaluation import encode_tagged
from lorakit.training.frozen_layer_cache import FrozenLayerCache
from lorakit.training.layout import layout_for
from tests.support.tiny import LABELS
from tests.support.token_classifiers import build
from tests.support.toy import killed_after, quick, read_log, step_lines, weights


def top(model, first=2):
    layers = range(first, len(model.base_model.encoder.layer))
    query = "query_proj" if model.config.model_type == "deberta-v2" else "query"
    return lorakit.apply_lora(model, r=4, target_modules=[query, "dense"], layers_to_transform=layers)


@pytest.mark.parametrize("architecture", ["roberta", "bert", "electra", "deberta-v2"])
@pytest.mark.parametrize("packing", [True, False])
def test_training_is_the_same_with_and_without(tiny_model, tokenizer, data, tmp_path, architecture, packing):
    curves, trained = [], []
    for cached in (False, True):
        attention = "eager" if architecture == "deberta-v2" else "sdpa"
        model = top(tiny_model(architecture, attention=attention, num_hidden_layers=4))
        config = quick(output_dir=tmp_path / str(cached), log_every=1, packing=packing, cache_prefix=cached)
        result = lorakit.train(model, tokenizer, data, config)
        curves.append([line["loss"] for line in step_lines(tmp_path / str(cached))])
        trained.append((weights(model), result.test.f1, result.train_tokens))
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    for name, expected in trained[0][0].items():
        torch.testing.assert_close(trained[1][0][name], expected, rtol=0, atol=2e-3, msg=name)
    assert trained[1][1:] == trained[0][1:]
    (line,) = [line for line in read_log(tmp_path / "True") if line["event"] == "cache_prefix"]
    encoded = encode_tagged(model, tokenizer, data.train)
    assert (line["layers"], line["bytes"]) == (2, len(encoded.ids) * 32 * 4)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("lilt", {}, "passes more than hidden states from layer to layer"),
        ("longformer", {}, "changes the shape of a batch inside"),
        ("deberta-v2", {"conv_kernel_size": 3}, "computes more between its layers: its output would differ by"),
    ],
)
def test_a_model_that_the_cache_would_change_is_refused_and_trains_without_it(tokenizer, data, kind, options, reason):
    model = lorakit.apply_lora(
        set_to_zero(build(kind, **options)), r=2, layers_to_transform=[1], layers_pattern="layer"
    )
    with pytest.raises(ValueError, match=f"cache_prefix: .* {reason}.*; train it without cache_prefix"):
        lorakit.train(model, tokenizer, data, quick(cache_prefix=True))
    assert lorakit.train(model, tokenizer, data, quick(epochs=1)).steps > 0


def set_to_zero(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_lower_layers_are_not_computed_and_come_back(tiny_model, tokenizer, data):
    model = tiny_model(num_hidden_layers=4).train()  # the cache asks what requires a gradient, not why
    model.base_model.embeddings.requires_grad_(False)
    model.base_model.encoder.layer[:2].requires_grad_(False)
    encoded, layout = encode_tagged(model, tokenizer, data.train), layout_for(model)
    batch = collate(encoded, range(6), layout)

    def flops():
        with FlopCounterMode(display=False) as counter:
            output = model(**layout.inputs(batch))[0]
        return counter.get_total_flops(), output

    cache = FrozenLayerCache(model, encoded, layout, torch.no_grad)
    whole, expected = flops()
    with cache.skipped(batch):
        part, found = flops()
    head = 2 * batch.input_ids.numel() * 32 * len(LABELS)
    assert part - head == (whole - head) / 2  # two of four equal layers
    real = batch.segments >= 0
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
    assert flops()[0] == whole
    assert all("forward" not in vars(module) for module in model.modules())


def test_an_error_inside_leaves_the_model_whole(tiny_model, tokenizer, data):
    model = top(tiny_model(num_hidden_layers=3))
    encoded, layout = encode_tagged(model, tokenizer, data.train), layout_for(model)
    cache = FrozenLayerCache(model, encoded, layout, torch.no_grad)
    with pytest.raises(KeyboardInterrupt), cache.skipped(collate(encoded, [0], layout)):
        raise KeyboardInterrupt
    assert all("forward" not in vars(module) for module in model.modules())
    assert not model.base_model.encoder.layer[2]._forward_pre_hooks


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda make: make(), "embeddings.word_embeddings.weight is trained"),
        (lambda make: lorakit.apply_lora(make()), r"layer 0 is trained.*layers_to_transform=\[1\]"),
        (lambda make: lorakit.apply_lora(make(), bias="all"), "embeddings.LayerNorm.bias is trained"),
        (lambda make: top(make(num_hidden_layers=3, dropout=0.1)), "dropout below the trained layers has dropout 0.1"),
        (lambda make: lorakit.apply_lora(make("distilbert")), "needs an encoder of BERT's form"),
    ],
)
def test_a_lower_part_that_is_not_constant_is_refused(tiny_model, tokenizer, data, build, message):
    with pytest.raises(ValueError, match=message):
        lorakit.train(build(tiny_model), tokenizer, data, quick(cache_prefix=True))


def test_a_run_resumes_only_with_the_same_setting(tiny_model, tokenizer, data, tmp_path):
    model = top(tiny_model(num_hidden_layers=3))
    lorakit.train(model, tokenizer, data, quick(epochs=1, output_dir=tmp_path, cache_prefix=True))
    with pytest.raises(ValueError, match="cache_prefix = True, now it is False"):
        lorakit.train(model, tokenizer, data, quick(epochs=1, output_dir=tmp_path, resume=True))


def test_a_stopped_and_resumed_run_logs_what_one_without_a_stop_logs(tiny_model, tokenizer, data, tmp_path):
    config = quick(epochs=2, cache_prefix=True, log_every=3)
    lorakit.train(top(tiny_model()), tokenizer, data, replace(config, output_dir=tmp_path / "whole"))
    parts = replace(config, output_dir=tmp_path / "parts")
    with killed_after(14), pytest.raises(KeyboardInterrupt):
        lorakit.train(top(tiny_model()), tokenizer, data, parts)
    lorakit.train(top(tiny_model()), tokenizer, data, replace(parts, resume=True))
    whole, stopped = ([line["event"] for line in read_log(tmp_path / name)] for name in ("whole", "parts"))
    assert stopped == whole and whole.count("cache_prefix") == 1

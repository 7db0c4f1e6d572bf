"""Frozen weights in half precision while training: the same curve to the last bit, and the same weights afterwards."""

from contextlib import nullcontext

import pytest
import torch

import lorakit
from lorakit.training import precision as precision_file
from lorakit.training.precision import SWITCH, autocast_for, bf16_instructions, bf16_share, frozen_in_half, only_cast
from tests.support.toy import quick, step_lines, weights

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize(
    ("architecture", "precision", "options"),
    [
        ("roberta", "bf16", {"bias": "all", "lora_dropout": 0.1}),
        ("roberta", "fp16", {}),
        ("bert", "bf16", {"use_dora": True, "target_modules": ["query"]}),
        ("distilbert", "bf16", {"init_lora_weights": "pissa", "target_modules": "all-linear"}),
    ],
)
def test_the_curve_is_the_same_bit_for_bit(
    tiny_model, tokenizer, data, tmp_path, monkeypatch, architecture, precision, options
):
    curves, trained, results = [], [], []
    for held in (True, False):
        if not held:
            monkeypatch.setattr("lorakit.training.loop.frozen_in_half", lambda *_: nullcontext())
        model = lorakit.apply_lora(tiny_model(architecture, dropout=0.1), r=4, **options)
        before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
        seen = {}
        model.register_forward_pre_hook(
            lambda m, _, seen=seen: seen.update({n: p.dtype for n, p in m.named_parameters()})
        )
        config = quick(precision=precision, log_every=1, output_dir=tmp_path / str(held))
        results.append(lorakit.train(model, tokenizer, data, config))
        curves.append([(line["loss"], line["grad_norm"]) for line in step_lines(tmp_path / str(held))])
        trained.append(weights(model))
        lower = {name for name, dtype in seen.items() if dtype != torch.float32}
        assert bool(lower) == held
        after = dict(model.named_parameters())
        for name, value in before.items():
            assert torch.equal(after[name].cpu(), value), name
            assert after[name].dtype == value.dtype
    assert curves[0] == curves[1]
    assert all(torch.equal(trained[0][name], value) for name, value in trained[1].items())
    assert results[0].test == results[1].test


def half():
    return torch.autocast("cpu", torch.bfloat16)


def held_in_half(model):
    """Their names."""
    found = {id(p) for p, _ in only_cast(model, half, lambda: model(input_ids=IDS))}
    return {name for name, p in model.named_parameters() if id(p) in found}


def test_matrices_and_their_frozen_biases_are_held_and_nothing_else(tiny_model):
    model = lorakit.apply_lora(tiny_model(num_hidden_layers=1), r=4, target_modules=["query"], bias="lora_only")
    held = held_in_half(model)
    layer = "roberta.encoder.layer.0."
    parts = (
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    expected = {f"{layer}{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert held == expected | {f"{layer}attention.self.query.weight"}


def test_a_matrix_that_is_read_in_float32_stays(tiny_model):
    dora = lorakit.apply_lora(tiny_model(), r=4, target_modules=["query"], use_dora=True)
    held = held_in_half(dora)
    assert not any("query.weight" in name for name in held)
    assert any("key.weight" in name for name in held)
    tied = tiny_model().requires_grad_(False)
    tied.classifier = torch.nn.Linear(32, tied.config.vocab_size, bias=False)
    tied.classifier.weight = tied.roberta.embeddings.word_embeddings.weight
    held = held_in_half(tied)
    assert not any("word_embeddings" in name for name in held)
    assert any("key.weight" in name for name in held)


def test_looking_leaves_modes_buffers_random_numbers_and_gradients_alone(tiny_model):
    model = lorakit.apply_lora(tiny_model(dropout=0.5), r=4, lora_dropout=0.5)
    model.dropout = torch.nn.Sequential(model.dropout, torch.nn.BatchNorm1d(IDS.shape[1]))
    model.train().classifier.eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    buffers = [buffer.clone() for buffer in model.buffers()]
    assert len(buffers) > 2  # batch norm's are among them
    assert held_in_half(model)
    assert [m.training for m in model.modules()] == modes
    assert all(map(torch.equal, model.buffers(), buffers))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_an_error_inside_brings_the_originals_back(tiny_model):
    model = lorakit.apply_lora(tiny_model(), r=4)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), frozen_in_half(model, half, lambda: model(input_ids=IDS)):
        assert sum(p.dtype == torch.bfloat16 for p in model.parameters()) > 10
        raise KeyboardInterrupt
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_float32_training_changes_nothing(tiny_model):
    model = lorakit.apply_lora(tiny_model(), r=4)
    with frozen_in_half(model, nullcontext, lambda: pytest.fail("there is nothing to find out")):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_originals_wait_on_the_host(tiny_model):
    model = lorakit.apply_lora(tiny_model(), r=4).cuda()
    before, used = weights(model), torch.cuda.memory_allocated()
    used = torch.cuda.memory_allocated()
    with frozen_in_half(model, lambda: torch.autocast("cuda", torch.bfloat16), lambda: model(input_ids=IDS.cuda())):
        assert torch.cuda.memory_allocated() < used
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


CPU = torch.device("cpu")


def is_bf16():
    """Whether "auto" on the CPU autocasts to bfloat16."""
    autocast, scaled = autocast_for("auto", CPU)
    with autocast():
        return not scaled and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "share", "wish", "expected"),
    [
        ({"avx2": True}, 0.5, "1", False),
        ({"avx512_f": True, "avx512_bf16": False}, 0.5, "1", False),
        ({"avx512_bf16": True}, 0.5, "1", True),
        ({"amx_bf16": True, "avx512_bf16": True}, 0.3, "1", True),
        ({"neon": True, "bf16": True}, 0.6, "1", True),
        ({"avx512_bf16": True}, 0.95, "1", False),  # it has the instructions, and gains nothing
        ({"avx512_bf16": True}, 0.5, "", False),
        ({"avx512_bf16": True}, 0.5, "0", False),
    ],
)
def test_auto_is_bf16_on_a_cpu_that_gains_from_it_only_if_it_is_allowed(
    monkeypatch, capabilities, share, wish, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(precision_file, "bf16_share", lambda: share)
    monkeypatch.setenv(SWITCH, wish)
    assert is_bf16() is expected
    assert autocast_for("fp32", CPU)[0] is nullcontext


def test_another_wish_is_refused(monkeypatch):
    monkeypatch.setenv(SWITCH, "yes")
    with pytest.raises(ValueError, match="LORAKIT_CPU_BF16 is 'yes'; it must be 1 .*, 0 or empty"):
        autocast_for("auto", CPU)


def test_instructions_are_named_and_lengths_are_none():
    assert bf16_instructions({"sve_bf16": True, "bf16": True}) == "sve_bf16"
    assert bf16_instructions({"bf16": False, "sve_max_length": 256}) is None


def test_the_share_is_that_of_the_shortest_times():
    times = iter([9, 2, 3, 1, 2, 2, 9, 4, 4, 5, 6, 4])  # the first of each kind does not count
    now = 0.0

    running = True

    def clock():  # called before and after each
        nonlocal now, running
        running = not running
        now += next(times) if running else 0
        return now

    assert bf16_share.__wrapped__(clock) == 1 / 4


def test_training_and_prediction_take_the_choice(monkeypatch, tiny_model, tokenizer, data):
    seen = set()
    model = lorakit.apply_lora(tiny_model(), r=2)
    model.classifier.register_forward_hook(lambda *arguments: seen.add((model.training, arguments[2].dtype)))
    monkeypatch.setattr(precision_file, "cpu_prefers_bf16", lambda: True)
    lorakit.train(model, tokenizer, data, quick(epochs=1))
    assert (True, torch.bfloat16) in seen
    seen.clear()
    lorakit.predict(model, tokenizer, ["IL-2 gene"])
    assert (False, torch.bfloat16) in seen

"""What decays, how the rate changes, and what a step of the optimizer costs in operations."""

import re

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

import lorakit
from lorakit.training.optimizer import build_optimizer, rate_of, set_rate
from tests.support.tiny import make_tiny_model
from tests.support.toy import killed_after, quick, step_lines, toy_data, weights


def test_matrices_decay_and_vectors_do_not(tiny_model):
    model = tiny_model()
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.3)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[p] for name, p in model.named_parameters()} == {
        name: 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.3 for name, _ in model.named_parameters()
    }


def test_modules_have_rates_of_their_own_and_the_longest_name_decides(tiny_model):
    model = lorakit.apply_lora(tiny_model(), r=4, modules_to_save=["word_embeddings"])
    rates = {"lora_B": 8e-3, "word_embeddings": 5e-4, "layer.1": 4e-3, "layer.1.attention.self.query": 6e-3}
    optimizer = build_optimizer(model, 1e-3, weight_decay=0.3, module_rates=rates)
    set_rate(optimizer, 0.5e-3)  # half of the highest
    found = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    wanted = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = 8e-3 if name.endswith("lora_B") else 5e-4 if "word_embeddings" in name else 1e-3
            rate = rate if ".layer.1." not in name else 4e-3
            wanted[name] = 6e-3 if ".layer.1.attention.self.query." in name else rate
    assert len(set(wanted.values())) == 5
    assert {n: found[p] for n, p in model.named_parameters() if p in found} == pytest.approx(
        {name: rate / 2 for name, rate in wanted.items()}
    )
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(wanted)


def test_a_run_uses_module_rates_and_the_same_rate_in_a_group_of_its_own_changes_no_bit(tiny_model, tokenizer, data):
    def trained(rates):
        torch.manual_seed(0)
        model = lorakit.apply_lora(tiny_model(), r=4, seed=0)
        lorakit.train(model, tokenizer, data, quick(epochs=1, module_learning_rates=rates))
        return dict(model.named_parameters())

    alike, other = trained({"lora_A": quick().learning_rate}), trained({"lora_A": 0.5 * quick().learning_rate})
    plain = trained(None)
    for name, parameter in plain.items():
        assert torch.equal(parameter, alike[name]), name  # the same rate, in a group of its own or not
    moved = [name for name in plain if not torch.equal(plain[name], other[name])]
    assert any(name.endswith("lora_A") for name in moved)


def test_a_module_rate_that_matches_nothing_is_refused(tiny_model):
    model = lorakit.apply_lora(tiny_model(), r=4)
    with pytest.raises(ValueError, match=r"module_learning_rates 'word_embedding' matches nothing .* it has: .*query"):
        build_optimizer(model, 1e-3, 0.0, {"word_embedding": 5e-4})


def test_the_rate_rises_then_falls_towards_zero():
    rates = [rate_of(step, 10, highest=2.0, warmup_ratio=0.2) for step in range(10)]
    assert rates == pytest.approx([2 / 3, 4 / 3, 2.0, 14 / 8, 12 / 8, 10 / 8, 1.0, 6 / 8, 4 / 8, 2 / 8])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT calls it
def test_the_groups_of_lora_plus_are_pefts():
    peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
    from peft.optimizers import create_loraplus_optimizer

    def table(model, optimizer):
        names = {id(p): name for name, p in model.named_parameters()}
        found = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)].removeprefix("base_model.model.").replace("base_layer.", "")
                name = re.sub(r"\.modules_to_save\.default|\.default(\.weight)?", "", name)
                found[name] = (group["lr"], group["weight_decay"])
        return found

    targets = ["query", "value"]
    ours = lorakit.apply_lora(make_tiny_model(), r=4, target_modules=targets, bias="all")
    config = peft.LoraConfig(r=4, target_modules=targets, bias="all", modules_to_save=["classifier"])
    theirs = peft.get_peft_model(make_tiny_model(), config)
    settings = {"lr": 1e-3, "loraplus_lr_ratio": 16.0, "loraplus_weight_decay": 0.1}
    expected = create_loraplus_optimizer(theirs, torch.optim.AdamW, **settings)
    found = table(ours, build_optimizer(ours, 1e-3, 0.1, loraplus_lr_ratio=16.0))
    assert found == table(theirs, expected)
    assert {rate for rate, _ in found.values()} == {1e-3, 1.6e-2}


def test_lora_plus_trains_b_at_its_ratio_in_every_step_and_logs_the_rate_of_a(tiny_model, tokenizer, tmp_path):
    rates = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(
            {name: group["lr"] for group in optimizer.param_groups for name in (names[id(p)] for p in group["params"])}
        )
    )
    model = lorakit.apply_lora(tiny_model(), r=2, target_modules=["query"])
    names = {id(p): name for name, p in model.named_parameters()}
    config = quick(epochs=2, learning_rate=1e-3, loraplus_lr_ratio=16.0, log_every=1, output_dir=tmp_path)
    try:
        lorakit.train(model, tokenizer, toy_data(16, 0, 0), config)
    finally:
        hook.remove()
    for step, by_name in enumerate(rates):
        rate = rate_of(step, 4, 1e-3, config.warmup_ratio)
        for name, found in by_name.items():
            faster = name.endswith("lora_B") or name == "classifier.bias"
            assert found == pytest.approx(16 * rate if faster else rate), name
    logged = [line["learning_rate"] for line in step_lines(tmp_path)]
    assert logged == pytest.approx([rate_of(step, 4, 1e-3, config.warmup_ratio) for step in range(4)])


def test_a_run_with_lora_plus_resumes_bit_for_bit_and_with_another_ratio_not_at_all(tokenizer, tmp_path):
    data, ends = toy_data(24, 8, 0), []

    def run(folder, **changes):
        model = lorakit.apply_lora(make_tiny_model(dropout=0.1), r=2, target_modules=["query"])
        settings = {"loraplus_lr_ratio": 16.0, "save_every": 1, "learning_rate": 1e-3, **changes}
        lorakit.train(model, tokenizer, data, quick(output_dir=tmp_path / folder, **settings))
        return weights(model)

    ends.append(run("through"))
    with pytest.raises(KeyboardInterrupt), killed_after(4):
        run("killed")
    for other in (None, 8.0):
        with pytest.raises(ValueError, match=f"loraplus_lr_ratio = 16.0, now it is {other}"):
            run("killed", resume=True, loraplus_lr_ratio=other)
    with pytest.raises(ValueError, match="class_weights = None, now it is 'balanced'"):
        run("killed", resume=True, class_weights="balanced")
    ends.append(run("killed", resume=True))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_lora_plus_without_lora_is_refused(tiny_model, tokenizer, data):
    with pytest.raises(ValueError, match="loraplus_lr_ratio=16 is .* leave it out for full fine-tuning, or"):
        lorakit.train(tiny_model(), tokenizer, data, quick(loraplus_lr_ratio=16.0))


class Kernels(TorchDispatchMode):
    """Counts the operations on tensors, by name."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_and_optimizer_are_the_same_few_operations_however_many_tensors(
    tiny_model, tokenizer, data, monkeypatch, precision
):
    """So one flat buffer for all trained parameters would save nothing: one or a few launches take all tensors."""
    counted = []

    def counting(function):
        def call(*args, **options):
            with Kernels() as kernels:
                result = function(*args, **options)
            counted.append(kernels.seen)
            return result

        return call

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counting(torch.nn.utils.clip_grad_norm_))
    monkeypatch.setattr(torch.optim.AdamW, "step", counting(torch.optim.AdamW.step))
    for layers in (1, 3):
        model = lorakit.apply_lora(tiny_model(num_hidden_layers=layers), r=4, target_modules="all-linear", bias="all")
        assert sum(p.requires_grad for p in model.parameters()) > 20 * layers
        lorakit.train(model, tokenizer, data, quick(epochs=1, precision=precision))
    clip, step = counted[2], counted[3]  # of the second step: the first creates the optimizer's state
    assert clip.count("_foreach_norm") == clip.count("_foreach_mul_") == 1
    assert step.count("_fused_adamw_") == 2  # groups: with and without weight decay
    assert len(clip) + len(step) <= 20
    assert counted[2:24] == counted[26:48]  # one layer and three

"""Settings that are out of range or do not work together are refused by name."""

import numpy as np
import pytest
import torch

from lorakit.training.config import TrainConfig, TrainResult

COMPILE = "'compile' does not work with strategy 'fsdp', cache_prefix or packing 'off'; use engine 'eager'"
GRAPHS = "'cuda_graphs' does not work with strategy 'fsdp' or packing 'off'; use engine 'eager'"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs is 0; it must be an integer of at least 1"),
        ("batch_size", 1.5, "batch_size is 1.5"),
        ("accumulate", True, "accumulate is True"),
        ("patience", -1, "patience is -1"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be a finite number above 0"),
        ("learning_rate", float("inf"), "learning_rate is inf; it must be a finite number above 0"),
        ("learning_rate", float("nan"), "learning_rate is nan; it must be a finite number above 0"),
        ("learning_rate", "1e-3", "learning_rate is '1e-3'"),
        ("warmup_ratio", 1.5, "warmup_ratio is 1.5; it must be a number from 0 to 1"),
        ("warmup_ratio", float("nan"), "warmup_ratio is nan; it must be a number from 0 to 1"),
        ("weight_decay", -0.1, "weight_decay is -0.1; it must be a finite number of at least 0"),
        ("weight_decay", float("inf"), "weight_decay is inf; it must be a finite number of at least 0"),
        ("max_grad_norm", 0, "max_grad_norm is 0; it must be a number above 0, of which inf turns clipping off"),
        ("max_grad_norm", float("nan"), "max_grad_norm is nan; it must be a number above 0"),
        ("precision", "int8", "precision is 'int8'; it must be one of auto, fp32, bf16, fp16"),
        ("resume", True, "resume and save_every need output_dir"),
        ("save_every", 0, "save_every is 0"),
        ("strategy", "deepspeed", "strategy is 'deepspeed'; it must be one of ddp, fsdp"),
        ("loss", "crf", "loss is 'crf'; it must be one of auto, cross_entropy, model"),
        ("class_weights", "even", "class_weights is 'even'; it must be 'balanced', a number above 0 for each label"),
        ("class_weights", (1.0, 0.0), r"class_weights is \(1.0, 0.0\); it must be"),
        ("class_weights", {"O": True}, "class_weights is {'O': True}; it must be"),
        ("class_weights", (), r"class_weights is \(\); it must be"),
        ("class_weights", 2.0, "class_weights is 2.0; it must be"),
        (
            "loraplus_lr_ratio",
            0.5,
            "loraplus_lr_ratio is 0.5; it must be a number of at least 1, such as 16, or left out",
        ),
        ("loraplus_lr_ratio", "16", "loraplus_lr_ratio is '16'"),
        ("engine", "fast", "engine is 'fast'; it must be one of eager, compile, cuda_graphs"),
    ],
)
def test_settings_out_of_range_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_class_weights_may_be_numpys_or_torchs():
    for weights in (np.array([1, 2.5]), np.array([1, 2.5], np.float32), torch.tensor([1, 2.5])):
        assert TrainConfig(class_weights=weights).class_weights == [1.0, 2.5]
    assert TrainConfig(class_weights={"B-X": np.float32(2.5)}).class_weights == {"B-X": 2.5}
    with pytest.raises(ValueError, match="class_weights is 2.0; it must be"):
        TrainConfig(class_weights=np.float64(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "model", "class_weights": "balanced"}, "class_weights are of the cross-entropy, and loss is 'model'"),
        ({"strategy": "fsdp", "precision": "fp16"}, "'fsdp' does not work with precision 'fp16'; use bf16 or fp32"),
        ({"strategy": "fsdp", "cache_prefix": True}, "'fsdp' does not work with cache_prefix: a sharded layer"),
        ({"engine": "compile", "strategy": "fsdp"}, COMPILE),
        ({"engine": "compile", "cache_prefix": True}, COMPILE),
        ({"engine": "compile", "packing": False}, COMPILE),
        ({"engine": "cuda_graphs", "strategy": "fsdp"}, GRAPHS),
        ({"engine": "cuda_graphs", "packing": False}, GRAPHS),
    ],
)
def test_settings_that_do_not_work_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_the_speed_of_a_run_leaves_compiling_and_evaluation_out():
    counts = {"best_epoch": 1, "epochs": 1, "steps": 4, "skipped_steps": 0, "computed_tokens": 1100, "history": ()}
    times = {"train_seconds": 4.0, "compile_seconds": 30.0, "duration_s": 50.0}
    assert TrainResult(validation=None, test=None, train_tokens=1000, **counts, **times).train_tokens_per_s == 250


@pytest.mark.parametrize(
    ("given", "kept"), [(True, "on"), (False, "off"), ("auto", "auto"), ("on", "on"), ("off", "off")]
)
def test_packing_is_a_word_and_a_bool_means_on_or_off(given, kept):
    assert TrainConfig(packing=given).packing == kept


def test_another_packing_is_refused():
    with pytest.raises(ValueError, match="packing is 'yes'; it must be one of auto, on, off"):
        TrainConfig(packing="yes")

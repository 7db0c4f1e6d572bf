"""Many adapters trained in one step are what each is alone: losses, gradients, scores and files."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lorakit
from lorakit import AdapterRun
from lorakit.training import many
from lorakit.training.stacked_parameters import StackedParameters
from tests.support.tiny import make_tiny_model
from tests.support.token_classifiers import build
from tests.support.toy import quick, step_lines, toy_data, weights

DATA = toy_data(30, 10, 6)


def alone(model, tokenizer, run, folder, data):
    """The run by `apply_lora` and `train`: its lines, its result and its adapter's tensors."""
    model = lorakit.apply_lora(copy.deepcopy(model), **run.lora)
    config = replace(run.config, output_dir=folder, log_every=1)
    result = lorakit.train(model, tokenizer, run.data or data, config)
    saved = lorakit.save_adapter(model, folder / "adapter")
    return step_lines(folder), result, load_file(saved / "adapter_model.safetensors")


def together(model, tokenizer, runs, folder, data=DATA, **options):
    """All runs by `train_many`: the model and the results."""
    runs = [replace(run, config=replace(run.config, output_dir=folder / run.name, log_every=1)) for run in runs]
    model = copy.deepcopy(model)
    return model, lorakit.train_many(model, tokenizer, data, runs, **options)


def assert_as_alone(model, tokenizer, runs, folder, data=DATA, **options):
    trained, results = together(model, tokenizer, runs, folder, data, **options)
    assert list(results) == [run.name for run in runs]
    for run in runs:
        lines, result, tensors = alone(model, tokenizer, run, folder / "alone" / run.name, data)
        mine, got = step_lines(folder / run.name), results[run.name]
        assert mine[0]["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-5)
        for name, tolerance in (("loss", 1e-5), ("learning_rate", 1e-9), ("grad_norm", 1e-4)):
            expected = [line[name] for line in lines][:30]
            assert [line[name] for line in mine][:30] == pytest.approx(expected, rel=tolerance), (run.name, name)
        for name in ("epochs", "steps", "best_epoch", "skipped_steps", "train_tokens"):
            assert getattr(got, name) == getattr(result, name), (run.name, name)
        for split in ("validation", "test"):
            assert getattr(got, split).loss == pytest.approx(getattr(result, split).loss, rel=1e-4)
        assert [scores.f1 for scores in got.history] == pytest.approx([scores.f1 for scores in result.history])
        saved = load_file(folder / run.name / "adapter" / "adapter_model.safetensors")
        assert saved.keys() == tensors.keys()
        for name, tensor in tensors.items():
            # a key's bias moves all scores of a query alike: its gradient is rounding, of which AdamW makes steps
            if not name.endswith(("key.base_layer.bias", "key.bias")):
                torch.testing.assert_close(saved[name], tensor, rtol=1e-3, atol=2e-4)
        lorakit.set_adapter(trained, run.name)
        assert lorakit.evaluate(trained, tokenizer, (run.data or data).test).f1 == pytest.approx(got.test.f1)


RUNS = [
    AdapterRun("plain", {"r": 2}, quick(epochs=3, learning_rate=1e-3)),
    AdapterRun(
        "wide",
        {"r": 8, "lora_alpha": 4, "seed": 3},
        quick(learning_rate=2e-3, batch_size=4, seed=5, warmup_ratio=0.5),
    ),
    AdapterRun(
        "few",
        {"r": 4, "target_modules": ["query"]},
        quick(learning_rate=2e-3, accumulate=2, batch_size=5, max_grad_norm=0.1),
    ),
    AdapterRun(
        "pissa",
        {"r": 3, "init_lora_weights": "pissa", "use_rslora": True},
        quick(learning_rate=1e-3, weight_decay=0.5, loraplus_lr_ratio=4.0),
    ),
    AdapterRun("biases", {"r": 1, "bias": "all"}, quick(learning_rate=1e-3)),
    AdapterRun("rates", {"r": 2}, quick(learning_rate=2e-3, module_learning_rates={"classifier": 1e-4}, epochs=1)),
    AdapterRun("own", {"r": 2}, quick(learning_rate=2e-3), data=toy_data(17, 5, 4)),
    AdapterRun(
        "whole",
        {"r": 2, "modules_to_save": ["1.output.dense", "embeddings.LayerNorm"], "init_lora_weights": "olora"},
        quick(learning_rate=1e-3, epochs=1),
    ),
]


def test_each_run_is_what_it_is_alone(tiny_model, tokenizer, tmp_path):
    """Two at a time, so that six wait; they end after one, two and three epochs."""
    assert_as_alone(tiny_model(), tokenizer, RUNS, tmp_path, at_once=2)


def test_plain_rows_are_dealt_to_the_runs_too(tiny_model, tokenizer, tmp_path):
    runs = [replace(run, config=replace(run.config, packing="off")) for run in RUNS[:3]]
    assert_as_alone(tiny_model(), tokenizer, runs, tmp_path)


@pytest.mark.parametrize("kind", ["modernbert", "electra", "gpt2", "albert"])
def test_other_architectures(tokenizer, tmp_path, kind):
    """ELECTRA's head has two layers, GPT-2's linear layers are transposed, ALBERT's are shared by all layers."""
    model = build(kind).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    runs = [replace(run, config=replace(run.config, epochs=1)) for run in (RUNS[0], RUNS[1])]
    assert_as_alone(model, tokenizer, runs, tmp_path)


RUN = st.builds(
    lambda r, alpha, rate, batch, seed, epochs, patience: (
        {"r": r, "lora_alpha": alpha, "seed": seed},
        quick(learning_rate=rate, batch_size=batch, seed=seed, epochs=epochs, patience=patience),
    ),
    st.integers(1, 6),
    st.sampled_from([1, 8, 16]),
    st.sampled_from([1e-4, 1e-3]),
    st.integers(2, 7),
    st.integers(0, 3),
    st.integers(1, 2),
    st.sampled_from([None, 1]),
)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RUN, min_size=1, max_size=4), st.integers(1, 3), st.integers(5, 14))
def test_any_mixture_of_runs(tokenizer, tmp_path_factory, drawn, at_once, sentences):
    runs = [AdapterRun(f"run {i}", *run) for i, run in enumerate(drawn)]
    folder = tmp_path_factory.mktemp("any")
    assert_as_alone(make_tiny_model(), tokenizer, runs, folder, toy_data(sentences, 4, 2), at_once=at_once)


class Counting(TorchDispatchMode):
    """Counts the operators that compute something: no views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        found = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
        views = not function._schema.is_mutable and all(t.untyped_storage().data_ptr() in given for t in found)
        self.count += not (found and views)
        return output


def test_a_step_of_sixteen_runs_takes_a_twelfth_of_the_operators_of_sixteen_steps(tiny_model, tokenizer):
    """Counted for forward, backward and optimizer, as the difference between three steps and two."""
    config = quick(epochs=1, batch_size=8, log_every=100)
    runs = [AdapterRun(f"run {n}", {"r": 1 + n % 4, "seed": n}, replace(config, seed=n)) for n in range(16)]

    def operators(train, steps):
        with Counting() as counted:
            train(replace(DATA, train=toy_data(8 * steps, 0, 0).train, validation=(), test=()))
        return counted.count

    def many(data):
        lorakit.train_many(tiny_model(), tokenizer, data, runs)

    def one(data):
        lorakit.train(lorakit.apply_lora(tiny_model(), r=4), tokenizer, data, config)

    step_of_many, step_of_one = (operators(train, 3) - operators(train, 2) for train in (many, one))
    assert step_of_many <= 16 * step_of_one / 12, (step_of_many, step_of_one)


def test_what_was_trained_predicts_in_one_batch_and_the_base_is_as_before(tiny_model, tokenizer, tmp_path):
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained, _ = together(model, tokenizer, RUNS[:2], tmp_path)
    assert lorakit.adapter_names(trained) == ("wide", "plain")
    sentences = [s.words for s in DATA.test]
    mixed = lorakit.predict(trained, tokenizer, sentences, adapters=["plain", "wide"] * 3)
    assert mixed[1::2] == lorakit.predict(trained, tokenizer, sentences)[1::2]
    lorakit.set_adapter(trained, "plain")
    assert mixed[::2] == lorakit.predict(trained, tokenizer, sentences)[::2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in lorakit.remove_lora(trained).state_dict().items())


def test_half_precision_is_that_of_a_run_alone_and_dropout_trains(tiny_model, tokenizer, tmp_path):
    config = quick(learning_rate=1e-3, precision="bf16")
    runs = [AdapterRun("half", {"r": 8}, config), AdapterRun("other", {"r": 2}, config)]
    together(tiny_model(), tokenizer, runs, tmp_path)
    lines, *_ = alone(tiny_model(), tokenizer, runs[0], tmp_path / "alone", DATA)
    losses = [line["loss"] for line in step_lines(tmp_path / "half")]
    assert losses == pytest.approx([line["loss"] for line in lines], rel=3e-2)
    runs = [AdapterRun(f"p{p}", {"r": 4, "lora_dropout": p}, quick(epochs=4, learning_rate=5e-3)) for p in (0.0, 0.4)]
    together(tiny_model(dropout=0.1), tokenizer, runs, tmp_path)
    curves = [[line["loss"] for line in step_lines(tmp_path / run.name)] for run in runs]
    assert curves[0] != curves[1] and all(curve[-1] < 0.75 * curve[0] for curve in curves)


def test_a_run_that_diverges_ends_and_the_others_go_on(tiny_model, tokenizer, tmp_path):
    model = tiny_model()
    runs = [
        AdapterRun("good", {"r": 2}, quick(epochs=2, batch_size=1, learning_rate=1e-3)),
        AdapterRun("bad", {"r": 2}, quick(epochs=2, batch_size=1, learning_rate=1e38)),
    ]
    with pytest.warns(
        RuntimeWarning, match="run 'bad': the last 2. steps had no finite gradient, so it ends here and the others"
    ):
        _, results = together(model, tokenizer, runs, tmp_path / "two")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, lone = together(model, tokenizer, runs[:1], tmp_path / "one")
    assert results["good"].steps == 60 and results["bad"].steps < 30 and results["bad"].diverged
    assert results["good"].validation.loss == pytest.approx(lone["good"].validation.loss, rel=1e-4)


def test_a_run_ends_with_its_patience_and_keeps_its_best_epoch(tiny_model, tokenizer, monkeypatch):
    score, f1 = many.score_split, iter([0.1, 0.3, 0.2, 0.2, 0.9])  # four epochs, then the test

    def scores(*given):
        found, counts = score(*given)
        return replace(found, f1=next(f1)), counts

    monkeypatch.setattr(many, "score_split", scores)
    run = AdapterRun("a", config=quick(epochs=9, patience=2))
    result = lorakit.train_many(tiny_model(), tokenizer, DATA, [run])["a"]
    assert (result.epochs, result.best_epoch, result.test.f1) == (4, 2, 0.9)


def test_a_batch_that_gives_a_run_the_adapter_of_another_is_refused(tiny_model, tokenizer, monkeypatch):
    of_rows = StackedParameters.of_rows
    monkeypatch.setattr(
        StackedParameters, "of_rows", lambda self, values, rows: of_rows(self, values, torch.zeros_like(rows))
    )
    runs = [AdapterRun(name, config=quick()) for name in ("a", "b")]
    with pytest.raises(ValueError, match="gives other outputs for several adapters in a batch than for each alone"):
        lorakit.train_many(tiny_model(), tokenizer, DATA, runs)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "runs is empty; give at least one AdapterRun"),
        ([AdapterRun("a"), AdapterRun("a")], "two runs have the name 'a'; give each its own"),
        ([AdapterRun("a"), AdapterRun("b", config=quick(precision="bf16"))], "'a' and 'b' have precision 'auto' and"),
        (
            [AdapterRun("a", config=quick(output_dir="x")), AdapterRun("b")],
            "'a' and 'b' only one has an output_dir; give",
        ),
        (
            [AdapterRun("a", config=quick(engine="cuda_graphs"))],
            "'a': engine='cuda_graphs' cannot be batched .* 'eager'",
        ),
        ([AdapterRun("a"), AdapterRun("b", config=quick(engine="compile"))], "have engine 'eager' and 'compile'"),
        ([AdapterRun("a", config=quick(class_weights="balanced"))], "class_weights='balanced' cannot be batched"),
        (
            [AdapterRun("a"), AdapterRun("b", config=quick(decode="greedy"))],
            "have decode 'auto' and 'greedy'",
        ),
        ([AdapterRun("a", config=quick(precision="fp16"))], "precision 'fp16' scales the loss of each run"),
        (
            [AdapterRun("a", {"use_dora": True})],
            "run 'a': .* cannot be batched .* it uses DoRA; train it alone with train",
        ),
        (
            [AdapterRun("a", {"trainable_token_indices": [5]})],
            "run 'a': .* it trains rows of .*word_embeddings; t",
        ),
        (
            [AdapterRun("a", {"target_modules": ["word_embeddings"]})],
            "because it adapts .*word_embeddings, a Embedding; t",
        ),
        (
            [AdapterRun("a", {"modules_to_save": ["word_embeddings"]})],
            "because it trains .*embeddings.weight, of a Embedding; t",
        ),
        ([AdapterRun("a", {"rank": 3})], "run 'a': lora has 'rank'; its settings are .* seed"),
        ([AdapterRun("a", {"r": 0})], "run 'a': r must be an integer of at least 1, got 0"),
        (
            [AdapterRun("a", {"modules_to_save": []}, data=replace(DATA, labels=(*DATA.labels, "B-X")))],
            "run 'a': .* labels of its own .*, B-X., and its adapter trains no head .* leave modules_to_save",
        ),
    ],
)
def test_what_cannot_be_batched_is_refused_by_name_and_the_model_stays(tiny_model, tokenizer, runs, message):
    model = tiny_model()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        lorakit.train_many(model, tokenizer, DATA, runs)
    assert weights(model).keys() == before.keys() == weights(tiny_model()).keys()
    assert "save_pretrained" not in vars(model)
    assert lorakit.train_many(model, tokenizer, DATA, [AdapterRun("a", config=quick(epochs=1))])["a"].steps == 4
    with pytest.raises(ValueError, match=r"this model has LoRA; call remove_lora\(model\) first"):
        lorakit.train_many(model, tokenizer, DATA, [AdapterRun("b")])


def test_a_folder_that_holds_another_run_is_refused_unless_it_is_to_be_overwritten(tiny_model, tokenizer, tmp_path):
    model = tiny_model()
    lorakit.apply_lora(model, r=2)
    lorakit.train(model, tokenizer, DATA, quick(epochs=1, output_dir=tmp_path))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds another run .*overwrite=True"):
        lorakit.train_many(tiny_model(), tokenizer, DATA, [AdapterRun("a", config=quick(output_dir=tmp_path))])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    config = quick(epochs=1, output_dir=tmp_path, overwrite=True)
    assert lorakit.train_many(tiny_model(), tokenizer, DATA, [AdapterRun("a", config=config)])["a"].steps == 4
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000004"]


def test_models_whose_rows_cannot_be_dealt_out_are_refused(tokenizer):
    """DeBERTa's queries are also computed for relative positions; FNet takes only sentences of one length."""
    runs = [AdapterRun(name, config=quick()) for name in ("a", "b")]
    for kind, message in (("deberta-v2", "first dimension is not the . rows of the batch"), ("fnet", "equal length")):
        options = {"relative_attention": True, "share_att_key": True, "pos_att_type": ["c2p"]}
        model = build(kind) if kind == "fnet" else make_tiny_model(kind, attention="eager", **options)
        with pytest.raises(ValueError, match=message):
            lorakit.train_many(model, tokenizer, DATA, runs)
        assert not [name for name, _ in model.named_parameters() if "lora" in name]

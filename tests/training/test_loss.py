"""What a step minimises equals a hand-written loop's, however the step is cut; a model's own loss is never skipped."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from transformers import RobertaModel, RobertaPreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

import lorakit
from lorakit.data.packing import collate, epoch_order
from lorakit.data.tokenization import IGNORE
from lorakit.training import layout
from lorakit.training.engine import LossSum, Objective
from lorakit.training.evaluation import encode_tagged
from lorakit.training.layout import layout_for
from lorakit.training.loss import layout_of_loss, weights_of_classes
from tests.support.tiny import LABELS, make_tiny_model
from tests.support.token_classifiers import build
from tests.support.toy import quick, step_lines, toy_data, weights

DATA = toy_data(24, 0, 0)
WEIGHTS = (0.5, 5.0, 4.0, 3.0, 2.0)
CUTS = [(12, 1, True), (6, 2, True), (3, 4, True), (6, 2, False)]  # batch size, accumulate, packing


class Chain(RobertaPreTrainedModel):
    """A tagger with a loss of its own: a chain over the words of each row (as a CRF has), or a mean over words."""

    kind = "chain"

    def __init__(self, config):
        super().__init__(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.transitions = nn.Linear(config.num_labels, config.num_labels, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None):
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids}
        logits = self.classifier(self.roberta(input_ids, **inputs)[0])
        if labels is None:
            return TokenClassifierOutput(logits=logits)
        return TokenClassifierOutput(loss=getattr(self, self.kind)(logits, labels), logits=logits)

    def row(self, logits, labels):
        """The loss of one row: each word's logits are moved by the label of the word before."""
        counted = labels != IGNORE
        logits, labels = logits[counted], labels[counted]
        before = F.one_hot(labels, logits.shape[-1]).float().roll(1, 0) * (torch.arange(len(labels)) > 0)[:, None]
        return F.cross_entropy(logits + self.transitions(before), labels, reduction="sum")

    def rows(self, logits, labels):
        return torch.stack([self.row(*pair) for pair in zip(logits, labels, strict=True)])

    def chain(self, logits, labels):
        return self.rows(logits, labels).mean()

    def total(self, logits, labels):
        return self.rows(logits, labels).sum()

    def weighted(self, logits, labels):
        """A mean over words, of its own kind: label smoothing beside a prior by the transitions' first row."""
        logits = (logits + self.transitions.weight[0]).flatten(0, 1)
        return F.cross_entropy(logits, labels.flatten(), label_smoothing=0.3)

    def squared(self, logits, labels):
        """No mean of anything: three sentences' loss does not follow from those of each."""
        return self.chain(logits, labels) ** 2

    def broken(self, logits, labels):
        return labels.new_tensor([1, 2, 3])[labels].float().mean() / 0

    def per_row(self, logits, labels):
        return self.rows(logits, labels)


def chain(kind="chain"):
    model = Chain(make_tiny_model().config).eval()
    model.kind = kind
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


def hand_written(model, tokenizer, config, loss_of_step):
    """Train on single sentences, with plain AdamW; `loss_of_step` gets the step's sentences and a closure for each.

    Returns:
        The loss of every step.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay}]
    groups += [{"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    size = 12
    total = math.ceil(len(DATA.train) / size) * config.epochs
    warmup = math.ceil(config.warmup_ratio * total)
    model.train()
    losses = []
    for epoch in range(1, config.epochs + 1):
        order = epoch_order(len(DATA.train), config.seed, epoch)
        for start in range(0, len(order), size):
            chosen = [inputs_of(tokenizer, DATA.train[i]) for i in order[start : start + size]]
            rate = min((len(losses) + 1) / (warmup + 1), (total - len(losses)) / (total - warmup))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            optimizer.zero_grad()
            loss = loss_of_step(model, chosen)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
    return losses


def inputs_of(tokenizer, sentence):
    inputs = tokenizer([[w or "<unk>" for w in sentence.words]], is_split_into_words=True, return_tensors="pt")
    ids = inputs.word_ids(0)
    starts = [word is not None and word != ids[i - 1] for i, word in enumerate(ids)]
    labels = [LABELS.index(sentence.tags[w]) if s else IGNORE for w, s in zip(ids, starts, strict=True)]
    return dict(inputs), torch.tensor([labels])


def weighted_cross_entropy(model, chosen):
    """torch's own mean over all words of the step."""
    logits = torch.cat([model(**inputs).logits[0] for inputs, _ in chosen])
    return F.cross_entropy(logits, torch.cat([labels[0] for _, labels in chosen]), torch.tensor(WEIGHTS))


@pytest.fixture(scope="module")
def by_hand(tokenizer):
    model = make_tiny_model()
    return hand_written(model, tokenizer, quick(), weighted_cross_entropy), weights(model)


def assert_same_run(losses, expected, model=None, trained=None):
    assert losses == pytest.approx(expected, rel=2e-4)
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)
    for name, value in (trained or {}).items():
        if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which Adam blows up
            torch.testing.assert_close(model.get_parameter(name).detach(), value, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("batch_size", "accumulate", "packing"), CUTS)
def test_class_weights_are_torchs_weighted_mean_over_the_whole_step(
    tokenizer, tmp_path, by_hand, batch_size, accumulate, packing
):
    model = make_tiny_model()
    sizes = {"batch_size": batch_size, "accumulate": accumulate, "packing": packing}
    config = quick(**sizes, class_weights=WEIGHTS, log_every=1, output_dir=tmp_path, overwrite=True)
    lorakit.train(model, tokenizer, DATA, config)
    assert_same_run([line["loss"] for line in step_lines(tmp_path)], by_hand[0], model, by_hand[1])


def test_class_weights_by_label_are_exact_in_parts(tokenizer, tmp_path, by_hand, monkeypatch):
    monkeypatch.setattr(layout, "PART_ELEMENTS", 32 * 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    by_label = dict(zip(LABELS, WEIGHTS, strict=True))
    config = quick(batch_size=12, class_weights=by_label, log_every=1, output_dir=tmp_path, overwrite=True)
    lorakit.train(make_tiny_model(), tokenizer, DATA, config)
    assert_same_run([line["loss"] for line in step_lines(tmp_path)], by_hand[0])


def test_balanced_weights_are_scikit_learns():
    classes = np.array([0] * 70 + [IGNORE] * 9 + [1] * 20 + [3] * 10)
    present = np.array([0, 1, 3])
    expected = compute_class_weight("balanced", classes=present, y=classes[classes != IGNORE])
    found = weights_of_classes("balanced", LABELS, classes)
    assert [found[i] for i in present] == pytest.approx(expected.tolist())
    assert found[2] == found[4] == 1.0  # no word has these classes


def test_balanced_weights_train_as_the_same_weights_by_hand(tokenizer, tmp_path):
    tags = [LABELS.index(tag) for sentence in DATA.train for tag in sentence.tags]
    classes = np.unique(tags)
    given = dict(
        zip([LABELS[i] for i in classes], compute_class_weight("balanced", classes=classes, y=tags), strict=True)
    )
    runs = []
    for wanted in ("balanced", given):
        config = quick(class_weights=wanted, log_every=1, epochs=1, output_dir=tmp_path, overwrite=True)
        lorakit.train(make_tiny_model(), tokenizer, DATA, config)
        runs.append([line["loss"] for line in step_lines(tmp_path)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)


def test_weights_that_do_not_fit_the_labels_are_refused_with_what_fits(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="class_weights has 2 values for 5 labels; give one for each, .*: O, B-"):
        lorakit.train(tiny_model(), tokenizer, DATA, quick(class_weights=(1.0, 2.0)))
    with pytest.raises(ValueError, match="class_weights names 'B-RNA'; the labels are O, B-DNA"):
        lorakit.train(tiny_model(), tokenizer, DATA, quick(class_weights={"B-RNA": 2.0}))
    for advised in (WEIGHTS, {LABELS[-1]: 5.0}):
        assert lorakit.train(tiny_model(), tokenizer, DATA, quick(class_weights=advised, epochs=1)).steps == 3


# A model's own loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chain", "total", "weighted", "squared"])
def test_a_model_with_a_loss_of_its_own_is_refused_until_the_user_chooses(tokenizer, kind):
    model = lorakit.apply_lora(chain(kind), r=2)
    with pytest.raises(ValueError, match="Chain computes a loss of its own .* cross-entropy is .*loss='model'"):
        lorakit.train(model, tokenizer, DATA, quick())
    # its transitions are in that loss alone, so leaving it out leaves them without a gradient, which is refused, too
    with pytest.raises(ValueError, match=r"1 of \d+ trained parameters got no .*: transitions.weight; freeze them"):
        lorakit.train(model, tokenizer, DATA, quick(loss="cross_entropy"))
    model.transitions.weight.requires_grad = False
    assert lorakit.train(model, tokenizer, DATA, quick(loss="cross_entropy", epochs=1)).steps == 3


@pytest.mark.parametrize(("kind", "unit"), [("chain", "sentences"), ("total", "sum"), ("weighted", "words")])
@pytest.mark.parametrize("packing", [True, False])
def test_a_models_own_loss_trains_as_in_a_hand_written_loop(tokenizer, tmp_path, kind, unit, packing):
    if packing and kind != "weighted":
        with pytest.raises(ValueError, match=r"in a packed row it runs from one .* TrainConfig\(packing='off'"):
            lorakit.train(chain(kind), tokenizer, DATA, quick(loss="model", packing="on"))
        return

    def loss_of_step(model, chosen):
        losses = [model(**inputs, labels=labels).loss for inputs, labels in chosen]
        words = [int((labels != IGNORE).sum()) for _, labels in chosen]
        if unit == "words":
            return sum(loss * n for loss, n in zip(losses, words, strict=True)) / sum(words)
        return sum(losses) / (len(losses) if unit == "sentences" else sum(words))

    reference = chain(kind)
    expected = hand_written(reference, tokenizer, quick(learning_rate=1e-3), loss_of_step)
    for batch_size, accumulate in ((12, 1), (4, 3)):
        model = chain(kind)
        before = model.transitions.weight.detach().clone()
        sizes = {"batch_size": batch_size, "accumulate": accumulate, "packing": packing, "learning_rate": 1e-3}
        lorakit.train(
            model, tokenizer, DATA, quick(**sizes, loss="model", log_every=1, output_dir=tmp_path, overwrite=True)
        )
        losses = [line["loss"] for line in step_lines(tmp_path)]
        assert_same_run(losses, expected, model, weights(reference))
        assert (model.transitions.weight - before).abs().max() > 1e-4  # the chain is trained


def test_a_loss_that_a_packed_row_would_change_falls_back_to_plain_rows_with_one_line(tokenizer, tmp_path, caplog):
    curves = []
    for packing in ("auto", "off"):
        config = quick(loss="model", packing=packing, epochs=1, log_every=1, output_dir=tmp_path / packing)
        lorakit.train(chain("chain"), tokenizer, DATA, config)
        curves.append([line["loss"] for line in step_lines(tmp_path / packing)])
    assert curves[0] == curves[1]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "Chain is used with plain rows, not packed, because its own loss of a packed row is not that of the row's"
        " sentences"
    ]
    with pytest.raises(ValueError, match="needs packed rows, and this model is not packed, because its own loss"):
        lorakit.train(chain("chain"), tokenizer, DATA, quick(loss="model", engine="compile"))


def test_a_weighted_loss_is_noticed_where_a_new_head_gives_every_class_alike(tiny_model, tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
    weights = torch.tensor(WEIGHTS)
    forward = type(model).forward

    class Weighted(type(model)):
        def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None):
            inputs = {"attention_mask": attention_mask, "position_ids": position_ids}
            output = forward(self, input_ids, **inputs)
            if labels is not None:
                output.loss = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), weights)
                return TokenClassifierOutput(loss=output.loss, logits=output.logits)
            return output

    model.__class__ = Weighted
    with pytest.raises(ValueError, match=r"loss of its own \(1.609, where the cross-entropy is 1.609\)"):
        lorakit.train(model, tokenizer, DATA, quick())


def without_the_chain(kind):
    """Its transitions are in its own loss alone, so they are frozen where that is left out."""
    model = chain(kind)
    model.transitions.weight.requires_grad = False
    return model


def test_a_loss_that_cannot_be_added_up_is_refused(tokenizer):
    with pytest.raises(ValueError, match="cannot be added up over batches; train with loss='cross_entropy'"):
        lorakit.train(chain("squared"), tokenizer, DATA, quick(loss="model", packing=False))
    assert (
        lorakit.train(without_the_chain("squared"), tokenizer, DATA, quick(loss="cross_entropy", epochs=1)).steps == 3
    )


def test_a_loss_that_fails_or_is_no_number_is_refused(tokenizer):
    for kind, reason in (("broken", "failed to do so"), ("per_row", "returns a tensor of shape")):
        with pytest.raises(ValueError, match=f"{reason}.*or leave it out with loss='cross_entropy'"):
            lorakit.train(chain(kind), tokenizer, DATA, quick())
        model = without_the_chain(kind)
        assert lorakit.train(model, tokenizer, DATA, quick(loss="cross_entropy", epochs=1)).steps == 3


def test_asking_for_the_loss_leaves_no_trace(tiny_model, tokenizer):
    """A run with "auto", which asks, is bit-equal to one that does not."""
    runs = []
    for loss in ("auto", "cross_entropy"):
        model = tiny_model(dropout=0.1)
        lorakit.train(model, tokenizer, DATA, quick(loss=loss, epochs=1))
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_transformers_own_loss_is_the_default(tiny_model, tokenizer, tmp_path):
    curves = []
    for loss in ("auto", "model"):
        lorakit.train(tiny_model(), tokenizer, DATA, quick(loss=loss, log_every=1, output_dir=tmp_path, overwrite=True))
        curves.append([line["loss"] for line in step_lines(tmp_path)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["xlm-roberta-xl", "fnet"])
def test_the_loss_of_a_class_that_takes_few_kinds_of_batches_is_understood(tokenizer, tmp_path, kind):
    """XLM-RoBERTa-XL's own loss takes no mask of blocks, FNet no padding; both are the cross-entropy."""
    curves = []
    for loss in ("auto", "cross_entropy", "model"):
        config = quick(loss=loss, packing="off", epochs=1, log_every=1, output_dir=tmp_path, overwrite=True)
        lorakit.train(lorakit.apply_lora(build(kind), r=2), tokenizer, DATA, config)
        curves.append([line["loss"] for line in step_lines(tmp_path)])
    assert curves[0] == curves[1] == pytest.approx(curves[2], rel=1e-4)
    assert lorakit.train(lorakit.apply_lora(build(kind), r=2), tokenizer, DATA, quick(epochs=1)).steps == 3
    if kind == "xlm-roberta-xl":
        with pytest.raises(ValueError, match=r"failed to compute its own loss .* TrainConfig\(packing='off'\)"):
            lorakit.train(build(kind), tokenizer, DATA, quick(loss="model", packing="on"))
        assert lorakit.train(build(kind), tokenizer, DATA, quick(loss="model", epochs=1)).steps == 3  # in plain rows


def test_a_model_without_labels_has_no_loss_to_train_on(tiny_model, tokenizer):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model()
            self.config, self.dtype = self.inner.config, torch.float32

        def forward(self, input_ids, attention_mask=None, position_ids=None):
            return self.inner(input_ids, attention_mask=attention_mask, position_ids=position_ids)

    with pytest.raises(ValueError, match="Plain.forward takes no labels.*loss='cross_entropy'"):
        lorakit.train(Plain(), tokenizer, DATA, quick(loss="model"))
    for loss in ("auto", "cross_entropy"):
        assert lorakit.train(Plain(), tokenizer, DATA, quick(epochs=1, loss=loss)).steps == 3


def test_a_batch_that_only_keeps_a_rank_in_step_adds_no_gradient_of_the_models_own_loss(tokenizer):
    for kind, unit in (("weighted", "words"), ("chain", "sentences"), ("total", "sum")):
        model = chain(kind)
        plain = layout_for(model, False)
        encoded = encode_tagged(model, tokenizer, DATA.train)
        loss = LossSum(model, plain, Objective(own=unit))
        loss(collate(encoded, [0], plain, counts=False)).backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", ["deberta-v2", "esm", "flaubert", "bloom", "ultrabert"])
def test_an_own_loss_is_packed_where_a_part_of_the_model_gets_the_mask(name):
    """Their own losses are the usual cross-entropy; the mask reaches them by a hook, also while this is found out."""
    model = build(name)
    found = layout_for(model)
    assert found.packing
    assert layout_of_loss(model, found, lorakit.TrainConfig(loss="model")) == found

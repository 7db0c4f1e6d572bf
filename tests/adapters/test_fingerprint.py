"""The digest of a base: equal for the same base in any state, different for any other."""

import torch
from torch import nn

from lorakit.adapters.fingerprint import fingerprint
from lorakit.lora import merge_lora
from tests.support.lora_models import labelled_roberta, trained_roberta


def test_the_fingerprint_ignores_training_and_merging() -> None:
    base = labelled_roberta()
    expected = fingerprint(base, saved=("classifier",))
    model = trained_roberta(bias="all")
    assert fingerprint(model) == expected
    assert fingerprint(merge_lora(model)) == expected


def test_the_fingerprint_leaves_the_storages_resizable() -> None:
    """FSDP2 resizes what it gathers; numpy would fix the size."""
    model = trained_roberta(bias="all")
    fingerprint(model)
    assert all(parameter.untyped_storage().resizable() for parameter in model.parameters())


def test_one_changed_bit_changes_the_exact_digest_only_if_it_is_not_trained() -> None:
    model, other = labelled_roberta(), labelled_roberta()
    with torch.no_grad():
        other.classifier.weight[0, 0] += 1
    assert fingerprint(other, saved=("classifier",)) == fingerprint(model, saved=("classifier",))
    with torch.no_grad():
        weight = other.roberta.encoder.layer[0].output.dense.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    changed, expected = fingerprint(other, saved=("classifier",)), fingerprint(model, saved=("classifier",))
    assert changed["exact"] != expected["exact"]
    assert changed["types"] == expected["types"]


def test_precision_changes_exact_and_types_but_not_rounded() -> None:
    full, half = fingerprint(labelled_roberta(), saved=()), fingerprint(labelled_roberta().bfloat16(), saved=())
    assert full["rounded"] == half["rounded"]
    assert full["exact"] != half["exact"] and full["types"] != half["types"]


def test_a_parameter_under_another_name_or_shape_is_another_base() -> None:
    values = torch.zeros(6)
    found = set()
    for name, shape in (("a", (2, 3)), ("b", (2, 3)), ("a", (3, 2))):
        model = nn.ParameterDict({name: nn.Parameter(values.view(shape))})
        found.add(fingerprint(model, saved=())["exact"])
    assert len(found) == 3

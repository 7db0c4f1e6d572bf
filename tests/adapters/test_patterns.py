"""What a stranger's adapter_config.json may ask for."""

import json

import pytest
from safetensors.torch import load_file, save_file

from lorakit.adapters import patterns
from lorakit.adapters.patterns import check_patterns
from lorakit.adapters.storage import CONFIG, OWN, TENSORS, load_adapter, save_adapter
from tests.support.lora_models import tiny_roberta, trained_roberta

NAMES = ["roberta.encoder.layer.0.attention.self.query", "roberta.encoder.layer.1.attention.self.value"]


@pytest.fixture
def change(tmp_path):
    folder = save_adapter(trained_roberta(), tmp_path / "adapter")
    (folder / OWN).unlink()
    save_file(load_file(folder / TENSORS), folder / TENSORS)  # as a stranger would have written it

    def change(**changes):
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 10**9}, "rank 1000000000 is larger than every tensor of the adapter"),
        ({"rank_pattern": {"query": 10**9}}, "rank 1000000000 is larger"),
        ({"r": "8"}, "r is '8', which is of no type that PEFT writes there"),
        ({"lora_alpha": [1]}, "lora_alpha is"),
        ({"target_modules": {"a": 1}}, "target_modules is"),
        ({"target_modules": [1]}, "target_modules is"),
        ({"rank_pattern": ["a"]}, "rank_pattern is"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is '3'"),
    ],
)
def test_what_cannot_be_is_one_line_before_memory_is_taken(change, changes, message):
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny_roberta(), change(**changes), check_base=False)


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_would_never_end_is_refused(monkeypatch, key):
    monkeypatch.setattr(patterns, "TRY_S", 0.5)
    pattern = r"([a-z_.0-9]+)+!"
    with pytest.raises(ValueError, match=r"a pattern takes more than 0.5 s .*name the layers in a list instead"):
        check_patterns({key: {pattern: 1} if key.endswith("pattern") else pattern}, NAMES, CONFIG)


def test_usual_patterns_are_taken():
    for pattern in (r".*\.(query|value)", r"roberta\.encoder\.layer\.\d+\..*(query|key|value)$", r"(\w+\.)*query"):
        check_patterns({"target_modules": pattern, "rank_pattern": {pattern: 4}}, NAMES, CONFIG)

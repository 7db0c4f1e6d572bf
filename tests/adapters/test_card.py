"""The model card of a saved adapter."""

from dataclasses import dataclass
from pathlib import Path

from lorakit.adapters.adapter import lora_state
from lorakit.adapters.card import model_card
from lorakit.adapters.storage import save_adapter
from tests.support.lora_models import trained_roberta


def test_the_model_card_shows_labels_metrics_and_energy(tmp_path: Path) -> None:
    save_adapter(
        trained_roberta(), tmp_path, metrics={"test": {"f1": 0.75}}, energy={"gpu": {"wh": None}, "cpu": {"wh": 1.5}}
    )
    card = (tmp_path / "README.md").read_text()
    assert "3 B-RNA" in card
    assert "| test.f1 | 0.75 |" in card
    assert "| gpu.wh | None |" in card
    assert card.startswith("---\nlibrary_name: peft\n")


@dataclass(frozen=True)
class Result:
    loss: float
    by_type: dict


def card(**options: object) -> str:
    return model_card("Tagger", "some/base", lora_state(trained_roberta()).current, 1234567, **options)


def test_dataclasses_and_mappings_are_flattened_and_floats_shortened() -> None:
    text = card(metrics=Result(0.123456789, {"DNA": {"f1": 0.5}, "steps": 3}))
    assert (
        "## Metrics\n\n| | |\n|---|---|\n| loss | 0.123457 |\n| by_type.DNA.f1 | 0.5 |\n| by_type.steps | 3 |\n" in text
    )


def test_sections_without_content_are_left_out() -> None:
    for text in (card(), card(labels=[], metrics={}, energy=None)):
        assert "##" not in text
    assert [line for line in card(labels=["O"], energy={"wh": 1}).splitlines() if line.startswith("##")] == [
        "## Labels",
        "## Energy",
    ]


def test_the_card_names_base_model_settings_and_what_is_trained_in_full() -> None:
    text = card()
    assert text.startswith("---\nlibrary_name: peft\nbase_model: some/base\ntags: [lora, lorakit]\n---\n")
    assert "# LoRA adapter for Tagger" in text
    assert "1,234,567 values: r=8, lora_alpha=16, bias=none, 4 layers adapted, trained in full: classifier." in text
    model = trained_roberta(modules_to_save=[])
    text = model_card("Tagger", None, lora_state(model).current, 1)
    assert "trained in full: nothing." in text and "base_model:" not in text

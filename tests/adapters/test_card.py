"""The model card of a saved adapter."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lorakit.adapters.adapter import lora_state
from lorakit.adapters.card import BEGIN, END, in_markdown, in_yaml, into_readme, model_card
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


def test_a_base_in_a_folder_is_no_metadata_which_a_hub_would_refuse(tmp_path: Path) -> None:
    for base in (str(tmp_path), "/no/such/folder", "./base", "a/b/c"):
        text = model_card("Tagger", base, lora_state(trained_roberta()).current, 1)
        assert yaml.safe_load(text.split("---")[1]) == {"library_name": "peft", "tags": ["lora", "lorakit"]}
        assert f"1 value on {in_markdown(base)}: r=8" in text


USERS = "---\nlicense: mit\ntags:\n- mine\n---\n# Genes\n\nOur own words.\n"


def test_a_readme_that_is_there_keeps_its_text_and_metadata(tmp_path) -> None:
    model = trained_roberta()
    folder = save_adapter(model, tmp_path)
    card = (folder / "README.md").read_text()
    save_adapter(model, folder)
    assert (folder / "README.md").read_text() == card
    (folder / "README.md").write_text(USERS + "caf\u00e9\n", encoding="latin-1")
    save_adapter(model, folder, metrics={"f1": 0.5})
    (folder / "README.md").write_bytes((folder / "README.md").read_bytes() + b"Below.\n")
    save_adapter(model, folder, metrics={"f1": 0.75})
    found = (folder / "README.md").read_text(encoding="latin-1")
    assert found.startswith("---\nlicense: mit\ntags:\n- mine\nlibrary_name: peft\n---\n")
    assert "Our own words.\ncaf\u00e9\n" in found and found.endswith("Below.\n")
    assert found.count("| f1 | 0.75 |") == found.count("# LoRA adapter for") == 1 and "| f1 | 0.5 |" not in found


@pytest.mark.parametrize("readme", ["", "Words.\n", "---\nnot closed\n"])
def test_a_readme_without_metadata_gets_some(readme: str) -> None:
    card = "---\nlibrary_name: peft\n---\n\n" + BEGIN + "\nA card.\n" + END + "\n"
    found = into_readme(readme, card)
    assert found.startswith("---\nlibrary_name: peft\n---\n\n") and readme.strip() in found and "A card." in found
    assert into_readme(found, card) == found


def test_names_are_escaped() -> None:
    assert in_markdown("a|b <img src=x> `c` [d](e)\n# f") == r"a\|b \<img src=x\> \`c\` \[d\](e) \# f"
    assert in_markdown("B-DNA") == "B-DNA" and in_markdown("rel_pos") == "rel_pos"
    for name in ("evil\ntags: [x]", "a: b", "x # y", "- z", "1.5"):
        assert yaml.safe_load(f"base_model: {in_yaml(name)}") == {"base_model": name}
    assert in_yaml("sentence-transformers/all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"

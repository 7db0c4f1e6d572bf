"""A token table with new rows: saving says that they are not in the adapter, and what it advises keeps them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification

from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.adapters.token_table import resized_table
from lorakit.lora import apply_lora
from tests.support.lora_models import perturb, tiny_roberta
from tests.support.token_classifiers import build

ROWS, MORE = 100, 103
TABLE = "roberta.embeddings.word_embeddings"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_roberta().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def resized(base: Path) -> torch.nn.Module:
    model = AutoModelForTokenClassification.from_pretrained(base).eval()
    model.resize_token_embeddings(MORE, mean_resizing=False)
    return model


def test_saving_names_the_new_rows_and_both_fixes_work(base: Path, tmp_path: Path) -> None:
    model = resized(base)
    model.save_pretrained(tmp_path / "resized")
    with pytest.warns(UserWarning, match=f"{TABLE} was resized from {ROWS} to {MORE} rows, and the adapter does not"):
        folder = save_adapter(perturbed(model), tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"{TABLE} was resized here from {ROWS} to {MORE} rows, and the new ones"):
        load_adapter(resized(base), folder)
    with pytest.raises(ValueError, match=f"token table had {MORE} rows, this one has {ROWS}; load the resized base"):
        load_adapter(AutoModelForTokenClassification.from_pretrained(base), folder)
    kept = AutoModelForTokenClassification.from_pretrained(tmp_path / "resized").eval()
    assert torch.equal(new_rows(load_adapter(kept, folder)), new_rows(model))
    kept = AutoModelForTokenClassification.from_pretrained(tmp_path / "resized").eval()
    save_adapter(perturbed(kept), tmp_path / "of-kept")  # no warning
    model = perturbed(resized(base), modules_to_save=[TABLE])
    folder = save_adapter(model, tmp_path / "in-full")
    with pytest.raises(ValueError, match=rf"with {MORE} rows, .* has {ROWS}; call model.resize_token_emb"):
        load_adapter(AutoModelForTokenClassification.from_pretrained(base), folder)
    assert torch.equal(new_rows(load_adapter(resized(base), folder)), new_rows(model))
    model = perturbed(resized(base), trainable_token_indices=range(ROWS, MORE))
    folder = save_adapter(model, tmp_path / "rows")  # no warning
    assert torch.equal(new_rows(load_adapter(resized(base), folder)), new_rows(model))


def test_an_adapter_of_a_model_without_a_token_table_is_saved_and_loaded(tmp_path: Path) -> None:
    """CANINE hashes characters: transformers raises where it is asked for a table."""
    base = tmp_path / "base"
    build("canine").save_pretrained(base)

    def load() -> torch.nn.Module:
        return AutoModelForTokenClassification.from_pretrained(base).eval()

    model, ids = perturbed(load()), torch.arange(20, 44)[None]
    with pytest.raises(NotImplementedError):
        model.get_input_embeddings()
    folder = save_adapter(model, tmp_path / "adapter")
    assert torch.equal(load_adapter(load(), folder)(ids).logits, model(ids).logits)


def perturbed(model: torch.nn.Module, **options: object) -> torch.nn.Module:
    perturb(apply_lora(model, r=2, **options))
    return model


def new_rows(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.tensor([[0, ROWS, ROWS + 1, 5]])).logits


def test_nothing_is_said_where_nothing_is_known(base: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(base)
    assert resized_table(model, ()) is None
    model.resize_token_embeddings(MORE, mean_resizing=False)
    assert resized_table(model, ()) == (TABLE, ROWS, MORE)
    assert resized_table(model, ["roberta.embeddings"]) is None
    for elsewhere in (None, "someone/not-in-the-cache", "/a/folder/that/is/gone"):
        model.config._name_or_path = elsewhere
        assert resized_table(model, ()) is None
    assert resized_table(torch.nn.Linear(2, 2), ()) is None

"""save_pretrained of an adapted model: the folder computes what the model does, in transformers, PEFT and lorakit."""

import copy
import gc
import pickle
import weakref

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoTokenizer

import lorakit
from lorakit.training.models import load_tagger, load_token_classifier
from tests.support.lora_models import IDS, logits, perturb, tiny_roberta, trained_roberta
from tests.support.tiny import LABELS, MINI

# PEFT reads an attribute that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def saved(tmp_path):
    """A trained tagger on the embedded base, and the folder that save_pretrained and its tokenizer wrote."""
    model, tokenizer = load_token_classifier(MINI.resolve(), LABELS)
    lorakit.apply_lora(model, r=2, target_modules=["query"])
    perturb(model)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return model.eval(), tmp_path / "saved"


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_transformers_and_lorakit_load_what_was_trained(copied, tmp_path):
    model = copied(trained_roberta(r=4, bias="all"))
    perturb(model)
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForTokenClassification.from_pretrained(tmp_path).eval()), wanted)
    torch.testing.assert_close(logits(lorakit.load_adapter(tiny_roberta(), tmp_path)), wanted)
    theirs = peft.PeftModel.from_pretrained(tiny_roberta(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), wanted)
    state = load_file(tmp_path / "model.safetensors")  # from which the Trainer resumes
    assert state.keys() >= {name for name, p in model.named_parameters() if p.requires_grad}


def test_it_is_written_by_the_first_rank_alone_and_by_a_loaded_adapter_too(tmp_path):
    model = lorakit.load_adapter(tiny_roberta(), lorakit.save_adapter(trained_roberta(), tmp_path / "adapter"))
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "adapter_config.json").exists()
    model.save_pretrained(tmp_path / "main")
    assert (tmp_path / "main" / "adapter_config.json").exists()


def test_the_attribute_goes_with_lora_and_keeps_no_model_alive():
    model = lorakit.apply_lora(tiny_roberta())
    lorakit.remove_lora(model)
    assert "save_pretrained" not in vars(model)
    gc.disable()
    try:
        adapted, plain = weakref.ref(lorakit.apply_lora(tiny_roberta())), weakref.ref(tiny_roberta())
        assert (adapted() is None) == (plain() is None)  # without the collector, as a plain model
    finally:
        gc.enable()


def test_uploading_before_the_adapter_is_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"call model\.push_to_hub\(name\), or save and then run: hf upload"):
        trained_roberta().save_pretrained(tmp_path / "x", push_to_hub=True)
    assert not (tmp_path / "x").exists()


def test_such_a_folder_as_a_model_is_refused_and_as_an_adapter_right(saved):
    model, folder = saved
    with pytest.raises(ValueError, match=f"model='{folder}' is a LoRA adapter: give it as adapter='{folder}'"):
        load_tagger(model=str(folder))
    again, _ = load_tagger(str(folder))
    torch.testing.assert_close(again.eval()(IDS).logits, model(IDS).logits)


def test_training_on_from_such_a_folder_is_refused_and_the_advice_works(saved, tmp_path):
    model, folder = saved
    with pytest.raises(ValueError, match=r"is a LoRA adapter, not a model: .*merge=True\)\.save_pretrained\(folder\)"):
        load_token_classifier(folder, LABELS)
    base, tokenizer = load_token_classifier(MINI, LABELS)
    lorakit.remove_lora(lorakit.load_adapter(base, folder), merge=True).save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    again, _ = load_token_classifier(tmp_path / "merged", LABELS)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_a_state_of_an_adapted_model_alone_is_refused_and_the_advice_works(saved, tmp_path):
    model, folder = saved
    for name in ("adapter_config.json", "adapter_model.safetensors", "lorakit.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"the checkpoint holds LoRA's tensors beside the base's, but no adapter"):
        load_tagger(model=str(folder))
    again, _ = load_token_classifier(MINI.resolve(), LABELS)
    lorakit.apply_lora(again, r=2, target_modules=["query"])
    again.load_state_dict(load_file(folder / "model.safetensors"))
    lorakit.save_adapter(again, tmp_path / "adapter")
    tagger, _ = load_tagger(str(tmp_path / "adapter"))
    torch.testing.assert_close(tagger.eval()(IDS).logits, model(IDS).logits)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_a_checkpoint_of_the_trainer_loads_as_trained_and_resumes(tmp_path):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    def trainer(epochs):
        model, tokenizer = load_token_classifier(MINI.resolve(), LABELS, dropout=0.0)
        lorakit.apply_lora(model, r=2, target_modules=["query"])
        rows = [{"input_ids": ids, "labels": ids % len(LABELS)} for ids in IDS]
        options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "epoch"}
        arguments = TrainingArguments(
            str(tmp_path / "run"), num_train_epochs=epochs, learning_rate=1e-2, lr_scheduler_type="constant", **options
        )
        return Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)

    first = trainer(1)
    first.train()
    folder = tmp_path / "run" / "checkpoint-1"
    tagger, _ = load_tagger(str(folder))
    torch.testing.assert_close(tagger.eval()(IDS).logits, first.model.eval()(IDS).logits)
    resumed, whole = trainer(2), trainer(2)
    resumed.train(resume_from_checkpoint=str(folder))
    whole.train()
    torch.testing.assert_close(resumed.model.eval()(IDS).logits, whole.model.eval()(IDS).logits)
    assert AutoTokenizer.from_pretrained(folder).vocab_size > 0

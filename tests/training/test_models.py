import json
import shutil

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BartConfig, CanineTokenizer

import lorakit
from lorakit.data.encoding import encode
from lorakit.training.models import checked_source, load_tagger, load_token_classifier, save_model
from tests.support.tiny import LABELS, MINI, make_tiny_model
from tests.support.tokenizers import save_tokenizer


def test_the_embedded_base_loads_in_fp32_with_the_labels_in_order():
    model, tokenizer = load_token_classifier(MINI, LABELS)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: number for number, label in enumerate(LABELS)}
    assert tokenizer(["IL-2"], is_split_into_words=True).tokens()[1:-1] == ["ĠIL", "-", "2"]
    assert not model.training


def test_the_head_depends_on_the_seed_alone_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (load_token_classifier(MINI, LABELS, seed)[0].classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_replaces_the_bases_own():
    kept, zero = (load_token_classifier(MINI, LABELS, dropout=value)[0] for value in (None, 0.0))
    assert {m.p for m in kept.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert {m.p for m in zero.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert zero.config.attention_probs_dropout_prob == 0.0


def test_a_tokenizer_without_prefix_space_is_loaded_again_with_it(tmp_path):
    shutil.copytree(MINI, tmp_path / "base", ignore=shutil.ignore_patterns("*.py", "*.md"))
    config = (tmp_path / "base" / "tokenizer_config.json").read_text(encoding="utf-8")
    (tmp_path / "base" / "tokenizer_config.json").write_text(config.replace(' "add_prefix_space": true,\n', ""))
    tokens = (tmp_path / "base" / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "base" / "tokenizer.json").write_text(
        tokens.replace('"add_prefix_space": true', '"add_prefix_space": false').replace(
            '"add_prefix_space":true', '"add_prefix_space":false'
        )
    )
    _, tokenizer = load_token_classifier(tmp_path / "base", LABELS)
    assert tokenizer(["x", "gene"], is_split_into_words=True).tokens()[1:-1] == ["Ġx", "Ġgene"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("modernbert", "PreTrainedTokenizerFast"), ("llama3", "PreTrainedTokenizerFast"), ("llama3", "Qwen2Tokenizer")],
)
def test_a_base_whose_tokenizer_ignores_add_prefix_space_reads_words_as_running_text(kind, name, tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    save_tokenizer(kind, tmp_path, name)
    model, tokenizer = load_token_classifier(tmp_path, LABELS)
    words = ["x", "IL-2", "gene", "3.5", "McDonald", "CD4+", "2024"]
    running = tokenizer(" " + " ".join(words), add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, [words], 512).ids.tolist()[1:-1] == running
    assert [len(row) for row in lorakit.predict(model, tokenizer, [words])] == [len(words)]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "RobertaTokenizer has no vocabulary: .* copy them beside the model"),
        (lambda folder: CanineTokenizer().save_pretrained(folder), "CanineTokenizer is a slow tokenizer, which cannot"),
    ],
)
def test_a_base_without_a_fast_tokenizer_is_one_clear_error(write, message, tokenizer, tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match=f"cannot load a model from the folder .*: {message}"):
        load_token_classifier(tmp_path, LABELS)
    tokenizer.save_pretrained(tmp_path)  # as the message says
    load_token_classifier(tmp_path, LABELS)


def test_a_missing_folder_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"there is no model folder './nowhere'; give a folder with config.json"
    ):
        load_token_classifier("./nowhere", LABELS)


@pytest.mark.parametrize(
    ("inside", "advice"),
    [
        ("config.json", None),
        ("notes.txt", r"give a folder with config.json, or a hub id"),
        ("full/model/config.json", r"did you mean \S+/full/model\?"),
        ("lorakit_ner/config.json", r"did you mean \S+/lorakit_ner\?"),  # a spaCy pipeline's
        ("adapter/adapter_config.json", r"did you mean adapter='\S+/adapter'\?"),
    ],
)
def test_a_folder_that_is_no_model_names_the_one_inside(inside, advice, tmp_path):
    (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / inside).write_text("{}")
    if advice is None:
        assert checked_source(tmp_path) == str(tmp_path)
    else:
        with pytest.raises(ValueError, match=f"has no config.json, so it is no model; {advice}"):
            load_token_classifier(tmp_path, LABELS)


def test_an_empty_name_is_not_the_folder_one_is_in(monkeypatch):
    monkeypatch.chdir(MINI)
    with pytest.raises(ValueError, match="the name of the model is empty; give a folder with config.json, or a hub id"):
        load_token_classifier("", LABELS)
    assert load_token_classifier(".", LABELS)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.bin' is a file; give the model's folder"):
        load_token_classifier(tmp_path / "model.bin", LABELS)


def test_a_damaged_checkpoint_is_one_error(tmp_path):
    shutil.copytree(MINI, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(ValueError, match="cannot load a model from the folder"):
        load_token_classifier(tmp_path / "base", LABELS)


def test_a_pickle_is_never_loaded_and_can_be_converted(tmp_path, monkeypatch):
    shutil.copytree(MINI, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(MINI / "model.safetensors")
    torch.save(tensors, tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="it has no model.safetensors: .* is never opened here, so .* write") as caught:
        load_token_classifier(tmp_path / "base", LABELS)
    monkeypatch.chdir(tmp_path / "base")
    exec(str(caught.value).partition("write ")[2], {"torch": torch, "safetensors": safetensors})  # as the message says
    loaded, _ = load_token_classifier(tmp_path / "base", LABELS)
    for name, parameter in loaded.base_model.named_parameters(prefix="roberta"):
        assert torch.equal(parameter, tensors[name])


def test_an_architecture_without_a_token_classifier_is_named(tmp_path):
    BartConfig().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MINI).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no token classifier for this architecture \(BartConfig\); choose .*\.md$"):
        load_token_classifier(tmp_path, LABELS)


def test_a_hub_id_without_a_network_is_one_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="the hub id 'nobody/no-such-model': there is no folder of that name here, "):
        load_token_classifier("nobody/no-such-model", LABELS)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    model, _ = load_token_classifier(MINI, LABELS)
    return lorakit.save_adapter(lorakit.apply_lora(model, r=4), tmp_path_factory.mktemp("saved") / "adapter")


def test_an_adapter_says_what_it_lacks(adapter, tmp_path):
    own = (adapter / "lorakit.json").read_bytes()
    adapter = shutil.copytree(adapter, tmp_path / "adapter")
    (adapter / "lorakit.json").unlink()
    for labels in (None, LABELS):  # which do not replace the rest of the file
        with pytest.raises(ValueError, match="lorakit.json is missing, without which .*; copy it too"):
            load_tagger(str(adapter), labels=labels)
    with pytest.raises(ValueError, match="give the tag of each class in order"):
        load_tagger(str(adapter), check_base=False)
    assert load_tagger(str(adapter), labels=LABELS, check_base=False)[0].config.id2label == dict(enumerate(LABELS))
    theirs = shutil.copytree(adapter, tmp_path / "theirs")
    tensors = load_file(theirs / "adapter_model.safetensors")
    save_file(tensors, theirs / "adapter_model.safetensors")  # as PEFT does, without lorakit's metadata
    with pytest.raises(ValueError, match="does not say which labels its head has: lorakit.json is missing"):
        load_tagger(str(theirs))
    load_tagger(str(theirs), labels=LABELS)
    (adapter / "lorakit.json").write_bytes(own)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="is not the file that was saved with lorakit.json"):
        load_tagger(str(adapter))


def test_a_base_that_is_elsewhere_is_given_by_hand(adapter, monkeypatch):
    monkeypatch.setattr("lorakit.training.models.base_and_labels", lambda *_: ("/nowhere/base", list(LABELS)))
    adapter = str(adapter)
    with pytest.raises(ValueError, match="'/nowhere/base'.*adapter_config.json names this base: give it with model="):
        load_tagger(adapter)
    model, _ = load_tagger(adapter, str(MINI))
    assert model.config.id2label == dict(enumerate(LABELS))
    monkeypatch.setattr("lorakit.training.models.base_and_labels", lambda *_: (None, list(LABELS)))
    with pytest.raises(ValueError, match=r"does not name the base \(base_model_name_or_path\); give it with model="):
        load_tagger(adapter)
    assert load_tagger(adapter, str(MINI))[0].config.id2label == dict(enumerate(LABELS))


def test_saving_a_model_prints_nothing(tokenizer, tmp_path, capfd):
    save_model(load_token_classifier(str(MINI), ("O", "B-x"))[0], tokenizer, tmp_path / "model")
    assert capfd.readouterr() == ("", "")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o644}


def test_a_saved_model_replaces_an_earlier_one_atomically(tokenizer, tmp_path, monkeypatch):
    first, second = make_tiny_model(seed=1), make_tiny_model(seed=2)
    folder = tmp_path / "deep" / "model"
    save_model(first, tokenizer, folder)
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(second, tokenizer, folder)
    monkeypatch.undo()
    texts = ["IL-2 gene expression"] * 2
    assert lorakit.predict(*load_tagger(model=str(folder)), texts) == lorakit.predict(first, tokenizer, texts)
    save_model(second, tokenizer, folder)
    assert lorakit.predict(*load_tagger(model=str(folder)), texts) == lorakit.predict(second, tokenizer, texts)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]

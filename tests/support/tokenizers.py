"""Small tokenizers of the kinds that bases have, trained offline on a page of text. Each keeps its kind's rules."""

import json
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import ROOT

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UNPREFIXED = ("modernbert", "llama3", "gemma")  # pre-split words need a space before them
PREFIXED = ("roberta", "llama2", "bert", "bert-uncased", "xlm-roberta")


@cache
def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind of base; "superwords" has tokens that span words. The caller must not change it."""
    backend = _bpe(kind) if kind in ("modernbert", "llama3", "roberta") else _other(kind)
    ends = [("<s>", 0), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 512}
    names |= {} if kind == "llama3" else {"unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save_tokenizer(kind: str, folder: Path, name: str = "PreTrainedTokenizerFast") -> None:
    """Write a tokenizer as a base of its kind ships it, to be loaded as the class of this name."""
    make_tokenizer(kind).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": name}))


def _train(backend: Tokenizer, trainer_class: type, **options: object) -> Tokenizer:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    backend.train_from_iterator(
        [text], trainer_class(vocab_size=600, special_tokens=SPECIAL, show_progress=False, **options)
    )
    return backend


def _bpe(kind: str) -> Tokenizer:
    byte_level = pre_tokenizers.ByteLevel
    backend = Tokenizer(models.BPE())
    if kind == "llama3":
        split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level(add_prefix_space=False, use_regex=False)])
    else:
        backend.pre_tokenizer = byte_level(add_prefix_space=kind == "roberta")
    return _train(backend, trainers.BpeTrainer, initial_alphabet=byte_level.alphabet())


def _other(kind: str) -> Tokenizer:
    if kind in ("bert", "bert-uncased"):
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=kind == "bert-uncased")
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return _train(backend, trainers.WordPieceTrainer)
    if kind == "xlm-roberta":
        backend = Tokenizer(models.Unigram())
        spaces = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Sequence(spaces)
        return _train(backend, trainers.UnigramTrainer, unk_token="<unk>")
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    space = normalizers.Replace(" ", "▁")
    if kind == "superwords":
        backend.normalizer = space
        return _train(backend, trainers.BpeTrainer)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # training stops at spaces
    _train(backend, trainers.BpeTrainer)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.normalizer = space if kind == "gemma" else normalizers.Sequence([normalizers.Prepend("▁"), space])
    return backend

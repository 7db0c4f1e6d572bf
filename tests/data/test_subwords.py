from types import SimpleNamespace

import pytest
from tokenizers import Regex, pre_tokenizers
from torch import nn
from transformers import AutoTokenizer

from lorakit.data.encoding import encode
from lorakit.data.pretokenizer import split_words
from lorakit.data.subwords import check_tokenizer, ignores_case, kept_tokens, misread, subwords, word_prefix
from tests.support.tiny import MINI
from tests.support.tokenizers import LLAMA3, PREFIXED, UNPREFIXED, make_tokenizer

WORDS = [
    *("IL-2", "gene", "NF-kappaB", "(", "p50/p65", ")", "was", "3.5", "%", "of", "10,000", "CD4+", "T-cells", "."),
    *("Don't", "'s", "USA", "2024", "@user", "#tag", "-", "+0.5", "α", "x1y2Z3", "…", "GATA-1", "5'", "A549"),
]


@pytest.fixture
def own():
    """The embedded tokenizer, which a test may change."""
    return AutoTokenizer.from_pretrained(MINI)


@pytest.mark.parametrize("kind", (*PREFIXED, *UNPREFIXED))
def test_pre_split_words_are_read_as_the_same_tokenizer_reads_running_text(kind):
    tokenizer = make_tokenizer(kind)
    running = tokenizer("x " + " ".join(WORDS), add_special_tokens=False)["input_ids"]
    first = tokenizer("x", add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, [WORDS], 512).ids[1:-1].tolist() == running[len(first) :]
    assert word_prefix(tokenizer) == (" " if kind in UNPREFIXED else "")


def test_an_easy_word_does_not_speak_for_all():
    """Llama 3's rule with `add_prefix_space` reads "gene" as before, but gives "3.5" a space before each part."""
    shipped, changed = make_tokenizer("llama3"), make_tokenizer.__wrapped__("llama3")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    changed.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level]
    )
    wrong = misread(changed, "", shipped)
    assert "gene" not in wrong
    assert {"3.5", "IL-2", "10,000", "A549/T"} <= set(wrong)
    assert not misread(shipped, " ", shipped)


def test_a_word_is_represented_by_its_own_subword_not_by_the_space_before_it():
    tokenizer = make_tokenizer("llama3")
    assert tokenizer(" 12", add_special_tokens=False).tokens()[0] == "Ġ"
    encoded = encode(tokenizer, [["gene", "12", "IL-2"]], 512, [["O", "B-X", "O"]], ["O", "B-X"])
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
    starts = [tokens[i] for i in (encoded.words >= 0).nonzero()[0]]
    assert starts[1] in ("1", "12") and "Ġ" not in starts
    assert encoded.labels[encoded.words == 1].tolist() == [1]


def test_a_tokenizer_with_tokens_that_span_words_is_refused():
    with pytest.raises(ValueError, match=r"reads the word '.+' as \[.*but the text 'x .+ x' as.*splits a text at its"):
        check_tokenizer(make_tokenizer("superwords"))


def test_slow_tokenizers_are_refused():
    slow = SimpleNamespace(tokenize=str.split, is_fast=False)
    with pytest.raises(ValueError, match=r"SimpleNamespace is a slow tokenizer, .*; choose a base with a fast one"):
        check_tokenizer(slow)


def test_a_model_in_the_tokenizers_place_is_named():
    with pytest.raises(ValueError, match="the tokenizer is a Linear; give model, tokenizer and data in this order"):
        check_tokenizer(nn.Linear(1, 1))


def test_a_tokenizer_without_a_vocabulary_is_refused():
    from transformers import RobertaTokenizer

    with pytest.raises(ValueError, match="RobertaTokenizer has no vocabulary: every word is unknown to it; .*missing"):
        check_tokenizer(RobertaTokenizer())


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_are_kept_as_transformers_keeps_them(own, special):
    own.add_tokens(["<URL>", "@USER"], special_tokens=special)
    sentence = ["see", "<URL>", "@USER", "<URL>,", "a<URL>b", "IL-2"]
    assert encode(own, [sentence], 512).ids.tolist() == own(sentence, is_split_into_words=True)["input_ids"]


def test_additional_special_tokens_are_kept(own):
    own.add_special_tokens({"additional_special_tokens": ["<URL>"]})
    assert own.convert_tokens_to_ids("<URL>") in encode(own, [["see", "<URL>"]], 512).ids


def test_a_token_with_a_role_is_text_also_beside_an_added_one(own):
    own.add_tokens(["<URL>"], special_tokens=True)
    ids = subwords(own, ["<URL><pad>"])["<URL><pad>"].ids
    assert ids[0] == own.convert_tokens_to_ids("<URL>")
    assert own.pad_token_id not in ids and len(ids) > 2


def test_an_added_token_gets_no_space_of_its_own():
    tokenizer = make_tokenizer.__wrapped__("modernbert")
    tokenizer.add_tokens(["<URL>"], special_tokens=True)
    tokenizer.add_tokens(["@USER"])
    assert subwords(tokenizer, ["<URL>"])["<URL>"].ids == [tokenizer.convert_tokens_to_ids("<URL>")]
    assert subwords(tokenizer, ["@USER"])["@USER"].ids == [tokenizer.convert_tokens_to_ids("@USER")]


def test_added_tokens_are_words_of_their_own_in_raw_text(own):
    own.add_tokens(["<URL>"], special_tokens=True)
    own.add_tokens(["[gene]", "metoprolol"])
    text = "see<URL>, [gene] and metoprolols <pad>"
    words = split_words(text, kept_tokens(own))
    kept = ["see", "<URL>", ",", "[gene]", "and", "metoprolols", "<", "pad", ">"]
    assert [word.text for word in words] == kept
    assert all(text[word.start : word.end] == word.text for word in words)


@pytest.mark.parametrize(
    ("kind", "ignored"), [("bert-uncased", True), ("bert", False), ("modernbert", False), ("xlm-roberta", False)]
)
def test_an_uncased_tokenizer_is_recognized(kind, ignored):
    assert ignores_case(make_tokenizer(kind)) is ignored

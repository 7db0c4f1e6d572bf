import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.encoding import encode
from lorakit.data.tokenization import IGNORE, split_by_sentence

ODD = ["IL-2", "", "\u200b", "<pad>", "</s>", " ", "\u00a0", "a b", "é", "gene"]


def owned_words(encoded):
    return encoded.words[encoded.words >= 0]


def test_equals_the_tokenizers_own_reading_of_split_words(tokenizer):
    sentences = [["IL-2", "gene", "expression", "(", "IL-2R", ")"], ["NF-kappa", "B", "."]]
    encoded = encode(tokenizer, sentences, 512)
    for number, words in enumerate(sentences):
        expected = tokenizer(words, is_split_into_words=True)["input_ids"]
        assert encoded.ids[encoded.offsets[number] : encoded.offsets[number + 1]].tolist() == expected


def test_only_the_first_subword_of_a_word_has_its_label(tokenizer):
    words, tags = ["IL-2", "gene", "x"], ["B-DNA", "I-DNA", "O"]
    encoded = encode(tokenizer, [words], 512, [tags], ["O", "B-DNA", "I-DNA"])
    numbers = [None if w is None else w for w in tokenizer(words, is_split_into_words=True).word_ids()]
    firsts = [w is not None and w not in numbers[:i] for i, w in enumerate(numbers)]
    assert (encoded.labels != IGNORE).tolist() == firsts
    assert encoded.labels[firsts].tolist() == [1, 2, 0]


def test_empty_odd_and_special_looking_words_keep_their_place(tokenizer):
    encoded = encode(tokenizer, [ODD, ["b"]], 512)
    assert owned_words(encoded).tolist() == list(range(len(ODD) + 1))
    inside = encoded.ids[1 : encoded.offsets[1] - 1]
    assert not set(inside) & ({tokenizer.pad_token_id, tokenizer.eos_token_id} - {tokenizer.unk_token_id})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.text(max_size=8), max_size=12), max_size=4), st.integers(6, 40))
def test_no_word_is_ever_lost_or_doubled(tokenizer, sentences, window):
    encoded = encode(tokenizer, sentences, window)
    assert owned_words(encoded).tolist() == list(range(sum(map(len, sentences))))
    assert (encoded.lengths <= window).all()
    assert split_by_sentence(list(range(sum(map(len, sentences)))), encoded) == [
        list(range(sum(map(len, sentences[:i])), sum(map(len, sentences[: i + 1])))) for i in range(len(sentences))
    ]


def test_a_sentence_of_600_subwords_keeps_all_its_words(tokenizer):
    words = ["interleukin"] * 600
    encoded = encode(tokenizer, [words], 512)
    assert len(encoded) >= 2
    assert owned_words(encoded).tolist() == list(range(600))


def test_sentences_in_several_windows_are_counted(tokenizer):
    encoded = encode(tokenizer, [["a"] * 9, ["b"] * 30, [], ["c"], ["d"] * 20], 12)
    assert encoded.cut == 2 and encode(tokenizer, [["a"], []], 12).cut == 0


def test_a_word_longer_than_the_window_is_still_represented(tokenizer):
    encoded = encode(tokenizer, [["a", "ACGT" * 500, "b"]], 64)
    assert owned_words(encoded).tolist() == [0, 1, 2]
    assert encoded.lengths.max() <= 64


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O"], "sentence 0 has 2 words and 1 tag"),
        (["O", "B-virus"], "sentence 0 has the tag 'B-virus'; the model knows O, B-DNA"),
    ],
)
def test_bad_tags_are_named(tokenizer, tags, message):
    with pytest.raises(ValueError, match=message):
        encode(tokenizer, [["a", "b"]], 512, [tags], ["O", "B-DNA"])


def test_a_window_without_room_is_refused(tokenizer):
    with pytest.raises(ValueError, match="a window of 2 tokens leaves no room beside 2 special tokens"):
        encode(tokenizer, [["a"]], 2)


@pytest.mark.parametrize("window", [512, 32])
def test_all_8662_entities_of_the_test_set_survive_encoding_and_back(tokenizer, bionlp2004, window):
    data = read_ner(bionlp2004)
    tags = [sentence.tags for sentence in data.test]
    encoded = encode(tokenizer, [sentence.words for sentence in data.test], window, tags, data.labels)
    back = np.full(101_039, -1)
    back[owned_words(encoded)] = encoded.labels[encoded.words >= 0]
    restored = split_by_sentence([data.labels[c] for c in back], encoded)
    assert [tuple(sentence) for sentence in restored] == tags
    assert sum(tag.startswith("B-") for sentence in restored for tag in sentence) == 8662

"""Raw text is split as the corpus is, without losing any of it."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lorakit.data.pretokenizer import split_words
from tests.integration.test_bionlp import load_example

# what the rule looks at, mixed with any other character except half surrogates, which are not text
characters = st.one_of(
    st.sampled_from(" \n\r\t.:'s-/>=<()%,;A5i\u200b\u00a0\x1c😀é基か\u3099。"), st.characters(exclude_categories=["Cs"])
)
texts = st.text(characters, max_size=24)


def words_of(text: str) -> list[str]:
    return [word.text for word in split_words(text)]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts)
@example("a\r\nb.\r\n")
@example("😀IL-2👩‍🔬!")
def test_words_are_slices_in_order_and_only_white_space_is_left_out(text):
    reached = 0
    for word in split_words(text):
        assert reached <= word.start < word.end <= len(text)
        assert text[word.start : word.end] == word.text
        assert not text[reached : word.start].strip()
        reached = word.end
    assert not text[reached:].strip()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts)
@example("0''")
@example("'''s...")
def test_the_words_found_are_found_again(text):
    words = words_of(text)
    assert words_of(" ".join(words)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the IL-2 gene (IL2).", "the|IL-2|gene|(|IL2|)|."),
        ("在IL-2基因中，NF-kB（p65）。", "在|IL-2|基|因|中|，|NF-kB|（|p65|）|。"),
        ("東京タワー\u3000です", "東|京|タ|ワ|ー|で|す"),
        ("か\u3099くせい 葛\U000e0100", "か\u3099|く|せ|い|葛\U000e0100"),
        ("한국 사람은 naïve", "한국|사람은|naïve"),
        ("CD4+ T cells, NF-kappaB and PU.1;", "CD4+|T|cells|,|NF-kappaB|and|PU.1|;"),
        ("(P<0.05) in 50% of p50/p65", "(|P|<|0.05|)|in|50|%|of|p50/p65"),
        ("the patients' 5'-flanking and the gene's 3' end", "the|patients|'|5'-flanking|and|the|gene|'s|3|'|end"),
        ("i.e. M. bovis vs. E. coli", "i.e.|M.|bovis|vs.|E.|coli"),
        ("of vitamin D.", "of|vitamin|D|."),
        ("of vitamin D. \n", "of|vitamin|D|."),
        ("at 16:1: A --> B...", "at|16:1|:|A|-->|B|..."),
        ("A-->B 1,25-D3", "A|-->|B|1|,|25-D3"),
        ("“quoted” 'so' \"x\"", "“|quoted|”|'|so|'|\"|x|\""),
        (" \t\r\n\u00a0", ""),
        ("", ""),
        ("... !? ''", "...|!|?|''"),
        ("IL-2\u200b gene", "IL-2\u200b|gene"),
    ],
)
def test_the_rule_by_example(text, words):
    assert words_of(text) == (words.split("|") if words else [])


def test_half_a_surrogate_pair_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"character 3 of the text is '\\udc9f', half a surrogate pair"):
        split_words("IL-\udc9f2")


def test_the_embedded_corpus_is_split_as_it_was_written():
    load_example()  # puts its folder on the path
    from mini.corpus import make_corpus

    sentences = [words for words, _ in make_corpus(train=300, validation=1, test=1).train]
    assert sum(words_of(" ".join(words)) == words for words in sentences) == len(sentences)


@pytest.mark.parametrize(("split", "same", "of"), [("valid", 1920, 1927), ("test", 3833, 3856)])
def test_the_real_corpus_is_split_as_it_was_but_for_some_abbreviations(bionlp2004, split, same, of):
    lines = (bionlp2004 / f"{split}.json").read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["tokens"] for line in lines]
    assert len(sentences) == of
    assert sum(words_of(" ".join(words)) == words for words in sentences) == same

"""The tokenizer that an export ships reads words without lorakit's help."""

import pytest
from transformers import AutoTokenizer

from lorakit.data.encoding import encode
from lorakit.export.tokenizer import portable_tokenizer
from tests.support.tiny import make_tiny_model
from tests.support.tokenizers import make_tokenizer

WORDS = ["The", "IL-2", "gene", "(", "3.5", ")", "α-TNF"]


@pytest.mark.parametrize("kind", ["modernbert", "bert", "xlm-roberta"])
def test_pre_split_words_become_the_ids_of_training(kind, tmp_path):
    tokenizer = make_tokenizer(kind)
    model = make_tiny_model(vocab_size=len(tokenizer))
    portable_tokenizer(model, tokenizer).save_pretrained(tmp_path)
    shipped = AutoTokenizer.from_pretrained(tmp_path)
    assert shipped(WORDS, is_split_into_words=True)["input_ids"] == encode(tokenizer, [WORDS], 512).ids.tolist()
    assert shipped.model_max_length == 512
    if kind == "modernbert":  # the one given is unchanged
        assert (
            tokenizer(["a", "gene"], is_split_into_words=True)["input_ids"]
            != shipped(["a", "gene"], is_split_into_words=True)["input_ids"]
        )


def test_a_tokenizer_that_cannot_add_the_space_is_refused():
    tokenizer = make_tokenizer("llama3")
    with pytest.raises(ValueError, match="reads words only with a space before each, and cannot be changed to add it"):
        portable_tokenizer(make_tiny_model(vocab_size=len(tokenizer)), tokenizer)

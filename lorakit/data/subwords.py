"""The subwords of a word: the ids that a tokenizer gives it in running text.

A model has seen words in running text, so that is how pre-split words have to be encoded. Most tokenizers do it
themselves. Byte-level ones mark a word by the space before it, and some have no option to add one (ModernBERT's, Llama
3's): for them the space is put into the text. Which of the two a tokenizer needs is found out by trying both on words
with digits, signs and capitals: one easy word would pass also where "IL-2" is read as three words.

A special token that someone added, such as "<URL>", is one token. One that has a role, such as "<pad>", is text where a
text contains it: five characters, not padding.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from lorakit.data.pretokenizer import split_words

PROBES = (
    *("gene", "IL-2", "p53", "NF-kappaB", "3.5", "CD4+", "(", "%", "'s", "McDonald", "USA", "2024", "α-TNF", "café"),
    *("@user", "#tag", "http://x.org/a?b=1", "-", "...", "don't", "10,000", "A549/T", "+0.5", "北京", "1", "x"),
)
# not verbose: a word longer than the model's window is cut later, so it causes none of the errors that are warned of
AS_WORDS = {"is_split_into_words": True, "add_special_tokens": False, "verbose": False}
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Subwords(NamedTuple):
    """A word's subwords."""

    ids: list[int]
    first: int  # the subword that represents the word: the first that is more than the space before it


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot take pre-split words, or reads them differently from running text.

    Raises:
        ValueError: with the tokenizer's class and the fix.
    """
    word_prefix(tokenizer)


def word_prefix(tokenizer: Any) -> str:
    """What has to precede a pre-split word to be read as in running text: nothing, or a space.

    Example:
        from transformers import AutoTokenizer
        from lorakit.data.subwords import word_prefix
        word_prefix(AutoTokenizer.from_pretrained("examples/mini"))  # ''

    Args:
        tokenizer: a fast tokenizer.

    Raises:
        ValueError: neither will do, or the tokenizer is a slow one or has no vocabulary.
    """
    if not callable(getattr(tokenizer, "tokenize", None)):
        raise ValueError(
            f"the tokenizer is a {type(tokenizer).__name__}; give model, tokenizer and data in this order, with the"
            " tokenizer that AutoTokenizer or load_token_classifier loads"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which cannot map subwords to words; choose a base with a"
            " fast one (its folder has a tokenizer.json)"
        )
    if {i for ids in _read(tokenizer, list(PROBES)) for i in ids} <= {tokenizer.unk_token_id}:
        raise ValueError(
            f"{type(tokenizer).__name__} has no vocabulary: every word is unknown to it; the tokenizer's files are"
            " missing (tokenizer.json), so copy them beside the model"
        )
    for prefix in ("", " "):
        if not misread(tokenizer, prefix, tokenizer):
            return prefix
    word = misread(tokenizer, "", tokenizer)[0]
    (alone,), running = _read(tokenizer, [word]), tokenizer(f"x {word} x", add_special_tokens=False)["input_ids"]
    raise ValueError(
        f"{type(tokenizer).__name__} reads the word {word!r} as {tokenizer.convert_ids_to_tokens(alone)} but the text"
        f" {f'x {word} x'!r} as {tokenizer.convert_ids_to_tokens(running)}, with and without a space before the word;"
        " choose a base whose tokenizer splits a text at its spaces"
    )


def misread(tokenizer: Any, prefix: str, reference: Any) -> list[str]:
    """The probe words that a tokenizer, given pre-split words, reads differently from a reference in running text.

    Args:
        tokenizer: a fast tokenizer.
        prefix: what precedes each word.
        reference: a tokenizer that reads running text as the model's training did.
    """
    before, *running = reference(["x", *(f"x {word} x" for word in PROBES)], add_special_tokens=False)["input_ids"]
    after, *alone = _read(tokenizer, [f"{prefix}{word}" for word in ("x", *PROBES)])
    pairs = zip(PROBES, running, alone, strict=True)
    return [word for word, text, ids in pairs if text != before + ids + after]


def subwords(tokenizer: Any, words: Iterable[str]) -> dict[str, Subwords]:
    """The subwords of every distinct word: pre-split words do not depend on their neighbours.

    Args:
        tokenizer: a fast tokenizer that `check_tokenizer` accepts.
        words: any words; one for which the tokenizer finds nothing is encoded as the unknown token.

    Raises:
        ValueError: there is nothing for a word, and no unknown token.
    """
    distinct, prefix = list(dict.fromkeys(words)), word_prefix(tokenizer)
    special, added = (_any_of(tokens) for tokens in (_special(tokenizer), _added(tokenizer)))
    texts = {word: word if added.match(word) else prefix + word for word in distinct}  # a token needs no space
    plain = [word for word in distinct if not special.search(word)]
    found = _plain(tokenizer, [texts[word] for word in plain], len(prefix))
    read = dict(zip(plain, found, strict=True))
    return {word: read[word] if word in read else _marked(tokenizer, texts[word]) for word in distinct}


def kept_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The added tokens that are one word in a raw text wherever they occur, also where the text has no space."""
    special = _special(tokenizer)
    return tuple(token for token in _added(tokenizer) if token in special or len(split_words(token)) > 1)


def ignores_case(tokenizer: Any) -> bool:
    """Whether a tokenizer reads capitals as small letters, as those of uncased bases do."""
    cased, lower = (_read(tokenizer, words) for words in (["Gene", "IL"], ["gene", "il"]))
    return cased == lower and cased != [[tokenizer.unk_token_id]] * 2


def _read(tokenizer: Any, words: list[str]) -> list[list[int]]:
    """The ids of each word, given to the tokenizer as a pre-split sentence of its own."""
    return tokenizer([[word] for word in words], **AS_WORDS)["input_ids"]


def _plain(tokenizer: Any, texts: list[str], skipped: int) -> list[Subwords]:
    """The subwords of words without an added special token; `skipped` characters of each are the space before it."""
    if not texts:
        return []
    # split_special_tokens: "<pad>" in a text is five characters, not the padding token
    options = {**AS_WORDS, "split_special_tokens": True}
    found = tokenizer([[text] for text in texts], return_offsets_mapping=bool(skipped), **options)
    unknown = tokenizer.unk_token_id
    for text, ids in zip(texts, found["input_ids"], strict=True):
        if not ids and unknown is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no subword for {text!r} and no unknown token to use instead"
            )
    if not skipped:
        return [Subwords(ids or [unknown], 0) for ids in found["input_ids"]]
    return [
        Subwords(ids or [unknown], next((i for i, (_, end) in enumerate(offsets) if end > skipped), 0))
        for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]


def _marked(tokenizer: Any, text: str) -> Subwords:
    """The subwords of a word with an added special token, which is kept, while one with a role is text."""
    roles = _roles(tokenizer)
    pieces = [piece for piece in re.split(f"({_any_of(roles).pattern})", text) if piece]
    options = {"is_split_into_words": True, "add_special_tokens": False}
    read = [tokenizer([p], split_special_tokens=p in roles, **options)["input_ids"] for p in pieces]
    return Subwords([i for ids in read for i in ids], 0)


def _roles(tokenizer: Any) -> set[str]:
    return {str(token) for role in ROLES if (token := getattr(tokenizer, role, None))}


def _added(tokenizer: Any) -> set[str]:
    """The tokens that were added to the vocabulary, other than those with a role and runs of white space."""
    contents = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {content for content in contents - _roles(tokenizer) if content and not re.search(r"\s", content)}


def _special(tokenizer: Any) -> set[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return special & _added(tokenizer)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of the tokens, longest first; without tokens, nothing."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

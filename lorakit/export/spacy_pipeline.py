"""Export as a spaCy pipeline: lorakit's words, and a component that finds entities; `spacy.load(folder)` loads it.

spaCy finds the two parts through lorakit's entry points, so lorakit has to be installed where the pipeline is used;
the pipeline's meta.json says so, and `spacy package` turns it into a package that requires it.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import spacy
import srsly
import torch
from spacy.tokens import Doc
from torch import nn

from lorakit.data.decoding import check_decode
from lorakit.data.habits import WordHabits, from_json, habits_of, split_like
from lorakit.data.subwords import kept_tokens
from lorakit.data.tags import Span
from lorakit.export.card import Origin, export_card
from lorakit.export.proof import Reference, compare
from lorakit.training.evaluation import label_names
from lorakit.training.prediction import find_entities
from lorakit.training.quiet import quiet_transformers
from lorakit.training.untrusted import NO_REMOTE_CODE, check_files

FACTORY, WORDS = "lorakit_ner", "lorakit.words.v1"
USAGE = """
import spacy

nlp = spacy.load(".")
doc = nlp("The IL-2 gene (IL2) was not expressed.")
print([(entity.text, entity.label_) for entity in doc.ents])
"""


class WordTokenizer:
    """spaCy tokens that are lorakit's words (`lorakit.data.pretokenizer`), so entities always end between two tokens.

    Args:
        vocab: of the pipeline.
        keep: strings that are words of their own.
        habits: how the training corpus split words.
    """

    def __init__(self, vocab: Any, keep: Iterable[str] = (), habits: WordHabits | None = None) -> None:
        self.vocab, self.keep, self.habits = vocab, tuple(keep), habits or WordHabits()

    def __call__(self, text: str) -> Doc:
        words, spaces, at = [], [], 0
        for word in split_like(text, self.habits, self.keep):
            gap = text[at : word.start]
            if gap.startswith(" ") and words:  # spaCy keeps one space with the word before; more is a token
                spaces[-1], gap = True, gap[1:]
            if gap:
                words.append(gap)
                spaces.append(False)
            words.append(word.text)
            spaces.append(False)
            at = word.end
        if rest := text[at:]:
            if words and rest.startswith(" "):
                spaces[-1], rest = True, rest[1:]
            if rest:
                words.append(rest)
                spaces.append(False)
        return Doc(self.vocab, words=words, spaces=spaces)

    def to_disk(self, path: Any, **_: Any) -> None:
        """Nothing: the words to keep are in the pipeline's configuration."""

    def from_disk(self, path: Any, **_: Any) -> "WordTokenizer":
        """Nothing: the words to keep are in the pipeline's configuration."""
        return self

    def to_bytes(self, **_: Any) -> bytes:
        """Nothing, as `to_disk`."""
        return b""

    def from_bytes(self, data: bytes, **_: Any) -> "WordTokenizer":
        """Nothing, as `from_disk`."""
        return self


def make_word_tokenizer(keep: list[str], habits: dict[str, Any]) -> Any:
    """Return what makes the word tokenizer, for spaCy's registry; `habits` as in the model's configuration."""
    return lambda nlp: WordTokenizer(nlp.vocab, keep, from_json(habits))


class EntityFinder:
    """A spaCy component that sets `doc.ents` to what `lorakit.predict` finds in the document's text."""

    def __init__(self, decode: str = "auto") -> None:
        self.decode = check_decode(decode)
        self.model: nn.Module | None = None
        self.tokenizer: Any = None

    def __call__(self, doc: Doc) -> Doc:
        return next(iter(self.pipe([doc])))

    def pipe(self, stream: Iterable[Doc], batch_size: int = 256) -> Iterator[Doc]:
        """Find the entities of many documents, packed into batches."""
        for docs in spacy.util.minibatch(stream, batch_size):
            texts = [doc.text for doc in docs]
            for doc, (_, _, entities) in zip(docs, self._find(texts), strict=True):
                # other tokenizers may cut words elsewhere: then the entity grows to whole tokens
                found = [doc.char_span(e.start, e.end, e.type, alignment_mode="expand") for e in entities]
                doc.ents = spacy.util.filter_spans([span for span in found if span is not None])
                yield doc

    def _find(self, texts: Sequence[str]) -> Any:
        return find_entities(self.model, self.tokenizer, texts, decode=self.decode)

    def to_disk(self, path: Any, **_: Any) -> None:
        """Write the model and its tokenizer as transformers does."""
        with quiet_transformers():
            self.model.save_pretrained(path)
            self.tokenizer.save_pretrained(path)

    def from_disk(self, path: Any, **_: Any) -> "EntityFinder":
        """Load what `to_disk` wrote; nothing is unpickled."""
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        check_files(str(path))
        safe = {"use_safetensors": True, "dtype": torch.float32, **NO_REMOTE_CODE}
        with quiet_transformers():
            self.model = AutoModelForTokenClassification.from_pretrained(path, **safe).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(path, **NO_REMOTE_CODE)
        return self

    def to_bytes(self, **_: Any) -> bytes:
        """The files of `to_disk`; spaCy leaves out a component that has no such method."""
        with TemporaryDirectory() as folder:
            self.to_disk(folder)
            return srsly.msgpack_dumps({path.name: path.read_bytes() for path in Path(folder).iterdir()})

    def from_bytes(self, data: bytes, **_: Any) -> "EntityFinder":
        """Load what `to_bytes` gave."""
        with TemporaryDirectory() as folder:
            for name, content in srsly.msgpack_loads(data).items():
                (Path(folder) / Path(name).name).write_bytes(content)
            return self.from_disk(folder)


@spacy.Language.factory(FACTORY, default_config={"decode": "auto"})
def make_entity_finder(nlp: Any, name: str, decode: str) -> EntityFinder:
    """A component without a model, for `spacy.load`; `decode` as in `lorakit.predict`: "auto" is as it was trained."""
    return EntityFinder(decode)


if WORDS not in spacy.registry.tokenizers.get_all():
    spacy.registry.tokenizers.register(WORDS, func=make_word_tokenizer)


def write_spacy(model: nn.Module, tokenizer: Any, reference: Reference, folder: Path, origin: Origin) -> list[str]:
    """Write a merged model as a spaCy pipeline into an empty folder and prove it; see `write_hf` for the arguments.

    Returns:
        Sentences about the proof.

    Raises:
        NotProven: with the first difference.
    """
    words = {"@tokenizers": WORDS, "keep": list(kept_tokens(tokenizer)), "habits": habits_of(model).to_json()}
    nlp = spacy.blank("xx", config={"nlp": {"tokenizer": words}})
    finder = nlp.add_pipe(FACTORY, config={"decode": reference.decode})
    finder.model, finder.tokenizer = model, tokenizer
    nlp.meta.update(name="lorakit_ner", version="0.1.0", requirements=["lorakit[spacy]>=0.1"])
    written = folder / "pipeline"  # to_disk may make a folder only itself
    nlp.to_disk(written)
    for part in written.iterdir():
        shutil.move(part, folder / part.name)
    written.rmdir()
    compare(reference, _by_spacy(folder, reference), "spaCy", reference.decode)
    proof = [reference.proven("spaCy", reference.decode)]
    (folder / "README.md").write_text(export_card("spacy", label_names(model), origin, USAGE, proof), encoding="utf-8")
    return proof


def _by_spacy(folder: Path, reference: Reference) -> Iterator[list[Span]]:
    """Entities by words: on text whose words `split_words` gives again the tokens are the words."""
    nlp = spacy.load(folder)
    texts = [" ".join(words) for words in reference.sentences]
    for doc in nlp.pipe(texts):
        yield [Span(entity.label_, entity.start, entity.end) for entity in doc.ents]

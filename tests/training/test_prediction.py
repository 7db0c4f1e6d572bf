"""Raw texts and pre-split words take one path; entities are where they say; many texts give what each alone gives."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoTokenizer

import lorakit
from lorakit.data.pretokenizer import split_words
from lorakit.data.tags import irregular
from lorakit.lora import lora_layers
from lorakit.training import evaluation, layout, prediction
from lorakit.training.evaluation import tag_split, tag_words
from lorakit.training.prediction import Entity, Predictor, find_entities, find_in_chunks, in_chunks
from tests.data.test_pretokenizer import texts
from tests.support.tiny import LABELS, MINI, make_tiny_model
from tests.support.toy import toy_sentences


@pytest.fixture(scope="module")
def model():
    return make_tiny_model()


lists = st.lists(texts, max_size=4)
LONG = "the IL-2 gene, (IL2) of NF-kappaB. " * 120  # about 1,300 words, three windows
ODD = ["", " \n", "...", "😀", "IL-2\r\ngene\r\n", "\u200b", "<pad></s>", LONG]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lists)
@example(ODD)
def test_a_raw_text_gives_exactly_the_tags_of_its_words(model, tokenizer, texts):
    words = [[word.text for word in split_words(text)] for text in texts]
    tags = lorakit.predict(model, tokenizer, words)
    found = find_entities(model, tokenizer, texts)
    assert [row for _, row, _ in found] == tags
    assert lorakit.predict(model, tokenizer, texts) == [entities for _, _, entities in found]
    for entities, row in zip((entities for _, _, entities in found), tags, strict=True):
        assert [(e.type, e.first_word, e.end_word - 1) for e in entities] == get_entities(row)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lists)
@example(ODD)
def test_entities_are_slices_of_their_text_between_words(model, tokenizer, texts):
    for text, entities in zip(texts, lorakit.predict(model, tokenizer, texts), strict=True):
        words = split_words(text)
        for entity in entities:
            assert 0 <= entity.start < entity.end <= len(text)
            assert text[entity.start : entity.end] == entity.text
            assert (entity.start, entity.end) == (words[entity.first_word].start, words[entity.end_word - 1].end)
            assert 1 / len(LABELS) <= entity.score <= 1  # the tag chosen has at least an even share


def test_the_score_is_the_mean_softmax_of_the_entitys_tags(model, tokenizer):
    text = "In T cells the IL-2 gene binds NF-kappaB (p50/p65), and GATA-1 activates transcription of c-fos mRNA." * 3
    words = [word.text for word in split_words(text)]
    encoding = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**encoding).logits[0].softmax(-1)
    firsts = [encoding.word_ids().index(number) for number in range(len(words))]
    best = probabilities[firsts].max(-1).values
    entities = lorakit.predict(model, tokenizer, [text])[0]
    assert any(entity.end_word - entity.first_word > 1 for entity in entities)
    for entity in entities:
        assert entity.score == pytest.approx(float(best[entity.first_word : entity.end_word].mean()), abs=1e-5)


def test_packed_batches_of_texts_equal_each_text_alone(model, tokenizer, monkeypatch):
    texts = [LONG[: 30 * n] for n in range(20)]
    together = lorakit.predict(model, tokenizer, texts)
    alone = [lorakit.predict(model, tokenizer, [text], packing=False)[0] for text in texts]
    for a, b in zip(together, alone, strict=True):
        assert [(e.type, e.start, e.end) for e in a] == [(e.type, e.start, e.end) for e in b]
        assert [e.score for e in a] == pytest.approx([e.score for e in b], abs=1e-5)


def test_a_label_scheme_with_ends_and_singles_is_read_as_such(tokenizer):
    model = make_tiny_model()
    model.config.id2label = dict(enumerate(("O", "B-X", "E-X", "S-X", "I-X")))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0, 0, 9, 0]))
    entities = lorakit.predict(model, tokenizer, ["IL-2 gene"])[0]
    assert [(e.type, e.text) for e in entities] == [("X", "IL-2"), ("X", "gene")]


def test_no_text_gives_nothing(model, tokenizer):
    assert lorakit.predict(model, tokenizer, []) == []
    assert lorakit.predict(model, tokenizer, ["", "\n"]) == [[], []]
    assert lorakit.predict(model, tokenizer, [[], []]) == [[], []]


def test_an_entity_says_what_it_is():
    entity = Entity("DNA", 4, 13, "IL-2 gene", 0.9, 1, 3)
    assert lorakit.Entity is Entity
    with pytest.raises(AttributeError):
        entity.start = 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("IL-2 gene", r"predict takes a list of texts; this is one string: write \['IL-2 gene'\]"),
        (["IL-2", ["IL-2"]], "these texts are both: number 1 is of another kind than number 0"),
        ([["IL-2"], ["x"], "IL-2"], "these texts are both: number 2 is of another kind than number 0"),
        (["IL-\ud83d"], "half a surrogate pair"),
    ],
)
def test_anything_but_a_list_of_texts_is_refused(model, tokenizer, texts, message):
    with pytest.raises(ValueError, match=message):
        lorakit.predict(model, tokenizer, texts)


def test_a_head_for_another_task_is_refused(tokenizer):
    model = make_tiny_model()
    model.config.id2label = {i: f"LABEL_{i}" for i in range(5)}
    with pytest.raises(ValueError, match=r"classes are not entity tags \('LABEL_0' is none\).*LABEL_0, LABEL_1"):
        lorakit.predict(model, tokenizer, ["IL-2"])


def test_predict_gives_a_tag_for_every_word_even_odd_and_beyond_the_window(tiny_model, tokenizer):
    sentences = [["IL-2", "", "gene"], [], ["\u200b"], ["interleukin"] * 700]
    tags = lorakit.predict(tiny_model(), tokenizer, sentences)
    assert [len(row) for row in tags] == [3, 0, 1, 700]
    assert {tag for row in tags for tag in row} <= set(LABELS)


def test_an_added_special_token_is_one_word_of_a_raw_text(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<URL>"]})
    model, text = tiny_model(), "see <URL>, gene"
    model.resize_token_embeddings(len(tokenizer))
    ((words, tags, _),) = find_entities(model, tokenizer, [text])
    assert [word.text for word in words] == ["see", "<URL>", ",", "gene"]
    encoding = tokenizer([w.text for w in words], is_split_into_words=True, return_tensors="pt")
    firsts = [encoding.word_ids().index(i) for i in range(4)]
    with torch.no_grad():
        classes = model(**encoding).logits[0, firsts].argmax(-1).tolist()
    assert tags == [model.config.id2label[number] for number in classes]
    assert tokenizer.convert_tokens_to_ids("<URL>") in encoding["input_ids"]


@pytest.mark.parametrize("packing", ["on", "off"])
def test_each_text_with_an_adapter_of_its_own_is_tagged_as_by_that_adapter_alone(tiny_model, tokenizer, packing):
    model, names = tiny_model(), ["one", "two", "three"]
    for seed, name in enumerate(names):
        lorakit.apply_lora(model, r=seed + 1, adapter_name=name)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
    sentences = [*(s.words for s in toy_sentences(40, 3)), ("IL-2", "gene") * 300, ()]
    texts = [" ".join(words) for words in sentences]
    chosen = [[*names, "__base__"][i % 4] for i in range(len(texts))]
    tags = lorakit.predict(model, tokenizer, sentences, packing=packing, adapters=chosen)
    entities = lorakit.predict(model, tokenizer, texts, packing=packing, adapters=chosen)
    scores = tag_words(model, tokenizer, sentences, packing=packing, adapters=chosen).probabilities
    different = set()
    for name in names:
        lorakit.set_adapter(model, name)
        mine = [i for i, other in enumerate(chosen) if other == name]
        alone = tag_words(model, tokenizer, [sentences[i] for i in mine])
        assert alone.tags == [tags[i] for i in mine]
        for i, expected in zip(mine, alone.probabilities, strict=True):
            assert scores[i] == pytest.approx(expected, abs=1e-5)
        found = lorakit.predict(model, tokenizer, [texts[i] for i in mine])
        for row, i in zip(found, mine, strict=True):
            assert [(e.start, e.end, e.type) for e in row] == [(e.start, e.end, e.type) for e in entities[i]]
        different.add(str(lorakit.predict(model, tokenizer, sentences[:4])))
    assert len(different) == 3
    with lorakit.disable_lora(model):
        base = lorakit.predict(model, tokenizer, sentences[3::4])
    assert base == tags[3::4]


def test_a_process_without_a_sentence_of_its_own_still_takes_part(tiny_model, tokenizer, monkeypatch):
    """The second of two processes, where one batch holds all sentences: it computes a batch that does not count."""
    model = lorakit.apply_lora(tiny_model(), r=2)
    monkeypatch.setattr(evaluation, "rank", lambda: 1)
    monkeypatch.setattr(evaluation, "world_size", lambda: 2)
    for adapters in (None, ["default"]):
        (probabilities,) = tag_words(model, tokenizer, [["IL-2", "gene"]], adapters=adapters).probabilities
        assert probabilities == [0.0, 0.0]  # to which the first process adds its own


def test_adapters_that_do_not_fit_the_texts_are_refused(tiny_model, tokenizer):
    model = lorakit.apply_lora(tiny_model(), r=2)
    for wrong, message in (
        (["default"], "adapters has one name for each text; got 1 name for 2 texts"),
        ("default", "got 'default' for 2 texts"),
        (["default", "other"], "adapter 'other' matches nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            lorakit.predict(model, tokenizer, ["a", "b"], adapters=wrong)


def test_viterbi_gives_no_broken_tag_and_keeps_sentences_without_one(tiny_model, tokenizer):
    model = tiny_model()
    with torch.no_grad():  # every class is the best of some word
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    sentences = [f"IL-2 gene {i} binds NF-kappa B in T cells .".split()[: 3 + i % 6] for i in range(40)]
    greedy, best = (lorakit.predict(model, tokenizer, sentences, decode=decode) for decode in ("greedy", "viterbi"))
    broken = [i for i, tags in enumerate(greedy) if irregular(tags, "iob2")]
    assert 5 < len(broken) < 40
    assert not any(irregular(tags, "iob2") for tags in best)
    assert [i for i in range(40) if greedy[i] != best[i]] == broken
    pairs = list(zip(sentences, best, strict=True))
    scores = lorakit.evaluate(model, tokenizer, pairs, decode="viterbi")
    assert scores.f1 == scores.strict.f1 == 1
    assert lorakit.evaluate(model, tokenizer, pairs).f1 < 1


def test_an_unknown_decoder_is_refused(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="decode is 'beam'; it must be one of auto, viterbi, greedy"):
        lorakit.predict(tiny_model(), tokenizer, [["a"]], decode="beam")


# Many texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(tiny_model):
    model = lorakit.apply_lora(tiny_model(), r=4, target_modules="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def small(monkeypatch):
    """Chunks and batches so small that a few sentences are many."""
    monkeypatch.setattr(prediction, "TEXTS", 5)
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", 40)
    monkeypatch.setattr("lorakit.training.prediction.MANY", 100)


MANY_TEXTS = [" ".join(s.words) for s in toy_sentences(23, 3)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 6), st.integers(1, 60))
def test_chunks_are_the_items_in_order_and_keep_their_bounds(sizes, texts, characters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "TEXTS", texts)
        patch.setattr(prediction, "CHARACTERS", characters)
        chunks = list(in_chunks(sizes, int))
    assert [size for chunk in chunks for size in chunk] == sizes
    assert all(chunk and len(chunk) <= texts and (len(chunk) == 1 or sum(chunk) <= characters) for chunk in chunks)


def test_a_stream_is_read_at_most_two_chunks_ahead(adapted, tokenizer, small):
    read = []
    ahead = []

    def source():
        for number in range(40):
            read.append(number)
            yield MANY_TEXTS[number % len(MANY_TEXTS)]

    with Predictor(adapted, tokenizer) as tagger:
        done = 0
        for _, found in find_in_chunks(tagger, in_chunks(source(), len)):
            done += len(found)
            ahead.append(len(read) - done)
    assert done == 40 and len(ahead) == 8
    assert 0 < max(ahead) <= prediction.TEXTS + 1  # the next chunk, and the text that did not fit into it


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("decode", ["greedy", "viterbi"])
def test_many_texts_give_what_each_alone_gives(adapted, tokenizer, small, packing, decode):
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in adapted.named_parameters()}
    merged = []
    adapted.register_forward_hook(lambda *_: merged.append(all(layer.merged for _, layer in lora_layers(adapted))))
    together = find_entities(adapted, tokenizer, MANY_TEXTS, packing=packing, decode=decode)
    assert merged[-1]
    merged.clear()
    alone = [find_entities(adapted, tokenizer, [text], packing="off", decode=decode)[0] for text in MANY_TEXTS]
    assert not any(merged)
    assert sum(len(entities) for _, _, entities in together) > 20
    for (words, tags, entities), (own_words, own_tags, own) in zip(together, alone, strict=True):
        assert (words, tags) == (own_words, own_tags)
        assert [(e.type, e.start, e.end) for e in entities] == [(e.type, e.start, e.end) for e in own]
        assert [e.score for e in entities] == pytest.approx([e.score for e in own], abs=1e-5)
    words = [[word.text for word in row] for row, _, _ in together]
    tags = lorakit.predict(adapted, tokenizer, words, packing=packing, decode=decode)
    assert tags == [tags for _, tags, _ in together]
    for name, parameter in adapted.named_parameters():
        place, value = before[name]
        assert parameter.data_ptr() == place and torch.equal(parameter, value), name


def test_in_bf16_no_batch_casts_a_weight_and_the_tags_are_those_of_casts_in_every_batch(
    adapted, tokenizer, small, monkeypatch
):
    words = [text.split() for text in MANY_TEXTS]

    def casts(sentences):
        counted = 0

        class Counts(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                nonlocal counted
                weight = function is torch.ops.aten._to_copy.default and args[0].shape == (64, 32)
                counted += weight and (kwargs or {}).get("dtype") == torch.bfloat16
                return function(*args, **(kwargs or {}))

        with Predictor(adapted, tokenizer, "bf16", ready=True) as tagger, Counts():
            chunks = tagger.tag(in_chunks(sentences, len), lambda chunk: (None, chunk))
            return [
                (tags, scores) for _, f in chunks for tags, scores in zip(f.tags, f.probabilities, strict=True)
            ], counted

    found, held = casts(words)
    monkeypatch.setattr(evaluation, "frozen_in_half", lambda *_, **__: evaluation.nullcontext())
    wanted, each = casts(words)
    assert held == 0 and each > 4 * 2  # batches, layers
    assert found == wanted
    assert all(p.dtype == torch.float32 for p in adapted.parameters())


def test_evaluation_in_bf16_has_the_same_bits_with_weights_held(adapted, tokenizer, monkeypatch, small):
    pairs = [(s.words, s.tags) for s in toy_sentences(20, 1)]
    seen = set()
    adapted.register_forward_hook(lambda m, *_: seen.add(m.roberta.encoder.layer[0].output.dense.weight.dtype))
    held = lorakit.evaluate(adapted, tokenizer, pairs, "bf16")
    assert torch.bfloat16 in seen
    seen.clear()
    monkeypatch.setattr(evaluation, "frozen_in_half", lambda *_, **__: evaluation.nullcontext())
    assert lorakit.evaluate(adapted, tokenizer, pairs, "bf16") == held
    assert seen == {torch.float32}


def test_the_proof_of_a_layout_is_made_once_until_the_model_changes(adapted, tokenizer):
    calls = []
    adapted.register_forward_hook(lambda *_: calls.append(1))
    lorakit.predict(adapted, tokenizer, MANY_TEXTS[:1])
    assert len(calls) > 1
    calls.clear()
    lorakit.predict(adapted, tokenizer, MANY_TEXTS[:1])
    assert len(calls) == 1
    adapted.config._attn_implementation = "eager"
    lorakit.predict(adapted, tokenizer, MANY_TEXTS[:1])
    assert len(calls) > 3
    assert layout.remembered_layout(adapted, "off").packing is False
    assert layout.remembered_layout(adapted, "on").packing is True


def test_tokenizing_happens_in_another_thread_and_its_errors_arrive(adapted, tokenizer, small):
    threads = []

    def texts_of(chunk):
        threads.append(threading.current_thread())
        return chunk, chunk

    with Predictor(adapted, tokenizer) as tagger:
        assert len(list(find_in_chunks(tagger, in_chunks(MANY_TEXTS, len), texts_of))) == 5
        assert threading.main_thread() not in threads and len(threads) == 5
        found = find_in_chunks(tagger, in_chunks([*MANY_TEXTS[:5], "IL-\ud83d"], len))
        assert len(next(found)[1]) == 5
        with pytest.raises(ValueError, match="half a surrogate pair"):
            next(found)


def test_texts_before_one_that_cannot_be_read_are_tagged_first(adapted, tokenizer, small):
    def source():
        yield from MANY_TEXTS[:7]
        raise OSError("the disk is gone")

    found = []
    with Predictor(adapted, tokenizer) as tagger, pytest.raises(OSError, match="the disk is gone"):
        for _, rows in find_in_chunks(tagger, in_chunks(source(), len)):
            found += rows
    assert [row[1] for row in found] == [row[1] for row in find_entities(adapted, tokenizer, MANY_TEXTS[:5])]


def test_a_gpu_needs_room_for_a_second_copy_of_the_weights_and_as_much_again(monkeypatch):
    weight = SimpleNamespace(device=torch.device("cuda"), nbytes=100)
    model = SimpleNamespace(parameters=lambda: iter([weight, weight]))
    for free, expected in ((401, True), (400, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1000))
        assert prediction.has_room(model) is expected


def test_no_gradient_is_kept_and_modes_stay(adapted, tokenizer, small):
    adapted.train()
    outputs = []
    adapted.register_forward_hook(lambda module, _, output: outputs.append((output[0].requires_grad, module.training)))
    lorakit.predict(adapted, tokenizer, MANY_TEXTS)
    assert set(outputs) == {(False, False)} and adapted.training


def test_threads_that_share_a_model_take_turns(adapted, tokenizer, small, monkeypatch):
    inside, most = [], []

    def tag(*arguments):
        inside.append(None)
        time.sleep(0.02)  # long enough for another thread to come in
        most.append(len(inside))
        inside.pop()
        return tag_split(*arguments)

    monkeypatch.setattr("lorakit.training.prediction.tag_split", tag)
    work = [threading.Thread(target=find_entities, args=(adapted, tokenizer, MANY_TEXTS[:n])) for n in (1, 2, None)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(most) >= 3 and max(most) == 1


def test_threads_that_share_a_model_find_what_one_finds(adapted, tokenizer, small):
    wanted = find_entities(adapted, tokenizer, MANY_TEXTS)
    found, errors = {}, []

    def work(number):
        try:
            for _ in range(3):
                found[number] = find_entities(adapted, tokenizer, MANY_TEXTS if number else MANY_TEXTS[:1])
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    for number, rows in found.items():
        assert [row[1] for row in rows] == [row[1] for row in (wanted if number else wanted[:1])]
    assert not any(layer.merged for _, layer in lora_layers(adapted))

"""lorakit.predict beside transformers' pipeline: same weights, texts and entities, in turns, medians.

  python benchmarks/prediction.py --dataset path/to/bionlp2004          1,000 test sentences, roberta-base's shape
  python benchmarks/prediction.py --shape mini --dataset embedded       the embedded base, two minutes on 2 cores
  python benchmarks/prediction.py --ways lorakit lorakit-bf16 pipeline-1 pipeline-32       on a CPU with bf16, or a GPU

lorakit has the base and a LoRA adapter, as after training; the pipeline has a plain model with the adapter merged, its
fastest way to use one. It runs one sentence at a time and in batches of 32, aggregation "first". A round has sentences
of its own, the same for all ways, and ways run in reverse order in every second round. Every way starts from raw text
and ends with entities. Sentences are those of which both make the same words: the pipeline splits at spaces only, and
at the space before a word where that is a token of its own.

On a machine that does other work, too, compare CPU times: they count the seconds in which this process computed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from jobs import SHAPES, Job, job_of, lora_of, make_model, read_corpus, tokenizer_of
from provenance import BIONLP, BenchmarkParser, shown_options, write_results
from tables import table
from timing import in_turns
from torch import nn

import lorakit
from lorakit.adapters.merging import merged_state
from lorakit.data.pretokenizer import split_words

Found = list[list[tuple[str, int, int]]]
"""For each text its entities: type, first character, character after the last."""
Times = dict[str, float]
"""wall_s, and cpu_s: of all threads."""
WAYS = ("lorakit", "lorakit-bf16", "pipeline-1", "pipeline-32")
LENGTH = 400  # characters of a sentence, at most: it then fits in one window


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    job = job_of(options, read_corpus(options.dataset), warmup=0, lora_dropout=0.0)
    texts = texts_of(options.dataset, options.sentences, tokenizer_of(job))
    parts = [texts[number :: options.rounds] for number in range(options.rounds)]
    ways = make_ways(job, options.ways, options.layers)
    for find in ways.values():
        find(texts[:2])  # what is built once per process is not part of a round
    rounds: list[dict[str, Times]] = [{} for _ in range(options.rounds)]
    found: dict[str, list[Found]] = {way: [[]] * options.rounds for way in ways}
    for number, way in in_turns(options.ways, options.rounds):
        began, cpu_began = time.perf_counter(), time.process_time()
        found[way][number] = ways[way](parts[number])
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        rounds[number][way] = {"wall_s": wall, "cpu_s": cpu}
        print(f"round {number + 1}: {way} {wall:.1f} s, {cpu:.1f} s of CPU time", file=sys.stderr, flush=True)
    sizes = [len(part) for part in parts]
    summary = {"job": shown_options(options), "sentences": sizes, "rounds": rounds}
    write_results(options, summary | compare(sizes, rounds, found), report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="prediction.py", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base")
    default = ["lorakit", "pipeline-1", "pipeline-32"]
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=default, help="(default: %(default)s)")
    parser.add_common(dataset=BIONLP, rounds=5, r=16, target_modules=["query", "key", "value", "dense"], seed=0)
    parser.add_argument("--sentences", type=int, default=1000, help="of the test set (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="of the shape, the lowest ones (default: all)")
    options = parser.parse_args(arguments)
    if not 1 <= options.rounds <= options.sentences:
        parser.error("--rounds must be at least 1 and at most --sentences")
    if not any(way.startswith("pipeline") for way in options.ways):
        parser.error("--ways needs pipeline-1 or pipeline-32 to compare with")
    return options


def texts_of(dataset: str, count: int, tokenizer: Any) -> list[str]:
    """So many sentences of the test set (of the embedded corpus, its validation set), each as one raw text.

    Raises:
        ValueError: there are not so many.
    """
    split = read_corpus(dataset).validation if dataset == "embedded" else lorakit.read_ner(dataset).test
    texts = [text for words, _ in split if 0 < len(text := " ".join(words)) <= LENGTH]
    kept = [text for text in texts if [word.text for word in split_words(text)] == text.split()]
    places = tokenizer(kept, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kept = [text for text, row in zip(kept, places, strict=True) if all(start < end for start, end in row)]
    if len(kept) < count:
        raise ValueError(f"{dataset} has {len(kept):,} sentences that both split alike; give --sentences {len(kept)}")
    return kept[:count]


def make_ways(job: Job, names: Sequence[str], layers: int | None = None) -> dict[str, Callable[[list[str]], Found]]:
    """Each way as a function from texts to entities, all with the same weights."""
    from transformers import pipeline

    tokenizer = tokenizer_of(job)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapted, plain = adapted_and_merged(job, layers)
    adapted.to(device)

    def by_lorakit(precision: str) -> Callable[[list[str]], Found]:
        def find(texts: list[str]) -> Found:
            found = lorakit.predict(adapted, tokenizer, texts, precision)
            return [[(e.type, e.start, e.end) for e in row] for row in found]

        return find

    def by_pipeline(size: int) -> Callable[[list[str]], Found]:
        options = {"aggregation_strategy": "first", "batch_size": size, "device": device}
        tagger = pipeline("token-classification", model=plain, tokenizer=tokenizer, **options)

        def find(texts: list[str]) -> Found:
            return [[(e["entity_group"], e["start"], e["end"]) for e in row] for row in tagger(texts)]

        return find

    makers = {
        "lorakit": lambda: by_lorakit("fp32"),
        "lorakit-bf16": lambda: by_lorakit("bf16"),
        "pipeline-1": lambda: by_pipeline(1),
        "pipeline-32": lambda: by_pipeline(32),
    }
    return {name: makers[name]() for name in names}


def adapted_and_merged(job: Job, layers: int | None = None) -> tuple[nn.Module, nn.Module]:
    """The base with an adapter that changes its output, and a plain model with the same weights merged."""
    adapted = lorakit.apply_lora(cut(make_model(job), layers), **lora_of(job), seed=job.seed)
    generator = torch.Generator().manual_seed(job.seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.01, generator=generator)
            elif "classifier" in name:  # a larger head: random ones of the usual size give nearly even scores
                parameter.normal_(std=0.2, generator=generator)
    plain = cut(make_model(job), layers)
    plain.load_state_dict(merged_state(lorakit.merge_lora(adapted)))
    lorakit.unmerge_lora(adapted)
    return adapted.eval(), plain.eval()


def cut(model: nn.Module, layers: int | None) -> nn.Module:
    """The model with only its lowest layers."""
    if layers:
        del model.roberta.encoder.layer[layers:]
        model.config.num_hidden_layers = layers
    return model


def compare(sizes: list[int], rounds: list[dict[str, Times]], found: dict[str, list[Found]]) -> dict[str, Any]:
    """Speeds, ratios to the better pipeline of each round, and how many entities are the pipeline's."""
    pipelines = [way for way in found if way.startswith("pipeline")]
    reference = entities_of(found[pipelines[0]])
    ways = {}
    for way in found:
        mine = entities_of(found[way])
        ways[way] = {
            "sentences_per_cpu_s": median(n / row[way]["cpu_s"] for n, row in zip(sizes, rounds, strict=True)),
            **{
                f"{kind}_ratio": median(min(row[p][kind] for p in pipelines) / row[way][kind] for row in rounds)
                for kind in ("wall_s", "cpu_s")
            },
            "entities": len(mine),
            "same_entities": len(mine & reference),
        }
    return {"ways": ways, "reference": pipelines[0], "reference_entities": len(reference)}


def entities_of(rounds: list[Found]) -> set[tuple[int, int, str, int, int]]:
    """All entities of all texts, each with the number of its text."""
    return {(r, t, *entity) for r, texts in enumerate(rounds) for t, row in enumerate(texts) for entity in row}


def report(found: dict[str, Any]) -> list[str]:
    """The table of all ways."""
    job = found["job"]
    count, reference = found["reference_entities"], found["reference"]
    layers = f" cut to {job['layers']} layers" if job["layers"] else ""
    columns = (
        ("way", lambda row: row[0], "{}"),
        ("sentences per CPU second", lambda row: row[1]["sentences_per_cpu_s"], "{:.2f}"),
        ("speed / better pipeline, CPU time", lambda row: row[1]["cpu_s_ratio"], "{:.2f}"),
        ("wall time", lambda row: row[1]["wall_s_ratio"], "{:.2f}"),
        ("entities", lambda row: row[1]["entities"], "{:,}"),
        (f"of them {reference}'s", lambda row: row[1]["same_entities"], "{:,}"),
    )
    return [
        f"# Prediction, {job['shape']}{layers}, {sum(found['sentences']):,} sentences",
        "",
        f"{job['dataset']}, in {job['rounds']} rounds of {found['sentences'][0]:,} sentences, from raw text to"
        f" entities; medians of the rounds. Weights are random (except mini's encoder); {reference} finds {count:,}"
        " entities.",
        "",
        table(found["ways"].items(), *columns),
    ]


if __name__ == "__main__":
    raise SystemExit(main())

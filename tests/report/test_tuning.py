"""What a search found, as text and as a page."""

import copy
import re

import pytest

from lorakit.report.tuning import tuning_page, tuning_text, winner_sentence


def trial(name, f1, epochs, state="stopped", wh=None, targets="all-linear"):
    operations = 2e12 * epochs
    return {
        "name": name,
        "learning_rate": 1e-3,
        "r": 8,
        "lora_alpha": 16.0,
        "target_modules": targets,
        "state": state,
        "epochs": epochs,
        "f1": [] if f1 is None else [f1 / 2] * (epochs - 1) + [f1],
        "best_f1": f1,
        "tokens": 1000 * epochs,
        "operations": operations,
        "wh": wh,
        "cost": operations if wh is None else wh,
    }


def finalist(name, value):
    interval = {"value": value, "low": value - 0.01, "high": value + 0.01}
    about = {"name": name, "learning_rate": 1e-3, "r": 8, "lora_alpha": 16.0, "target_modules": ["query", "<value>"]}
    return {**about, "f1": {"validation": interval, "test": {"value": 0.5, "low": None, "high": None}}}


def pair(name, verdict):
    score = {"value": -0.02, "low": -0.03, "high": -0.01, "verdict": verdict, "sentence": f"{name} is {verdict}"}
    return {"name": name, "f1": {"default": score, "strict": score}, "ratios": {}, "contended": False}


def side(name):
    f1 = {"value": 0.6, "low": 0.5, "high": 0.7}
    costs = dict.fromkeys(("train_tokens_per_s", "train_seconds", "measured_wh", "estimated_wh"))
    return {"name": name, "seeds": [1, 2], "f1": {"default": f1, "strict": f1}, "costs": costs, "contention": []}


@pytest.fixture
def record():
    return {
        "command": "lorakit tune --model <base>",
        "environment": {"torch": "2"},
        "model": "<base>",
        "dataset": "corpus & more",
        "epochs": 9,
        "combinations": 40,
        "trials": [
            trial("trial-000", 0.6123, 9, "finished", 3.0, ["query", "<value>"]),
            trial("trial-001", 0.4, 1, "stopped", 0.5),
            trial("trial-002", None, 0, "diverged", 0.1),
        ],
        "front": ["trial-001", "trial-000"],
        "energy": {"method": "measured", "search_wh": 3.6, "finalists_wh": 18.0},
        "seeds": [1, 2],
        "finalists": [finalist("trial-000", 0.6), finalist("trial-001", 0.5), finalist("trial-003", 0.4)],
        "comparison": {
            "split": "validation",
            "sentences": 50,
            "margin": None,
            "sides": [side("a"), side("b"), side("c")],
            "comparisons": [pair("b − a", "worse"), pair("c − a", "cannot tell")],
        },
    }


def test_the_text_has_the_front_in_its_order_the_energy_the_finalists_and_the_winner(record):
    text = tuning_text(record)
    assert "3 of 40 combinations tried (1 finished, 1 stopped, 1 diverged); 10 epochs trained" in text
    assert "training each to the end takes 27." in text
    front = text.index("0.4000 |"), text.index("0.6123 |")
    assert front == tuple(sorted(front)) and "Wh (measured" in text
    assert "The search used 3.6 Wh and the finalists 18 Wh (measured)." in text
    assert "0.6000 [0.5900, 0.6100]" in text and "with seeds 1, 2" in text
    assert "1 of 2 more are surely worse, of the rest one cannot tell." in text
    for found in record["comparison"]["comparisons"]:
        found["f1"]["default"]["verdict"] = "worse"
    assert "all others are surely worse" in winner_sentence(record)


def test_where_no_energy_is_known_costs_are_operations_and_called_estimates(record):
    record["energy"] = dict.fromkeys(record["energy"])
    record["trials"] = [trial(one["name"], one["best_f1"], one["epochs"], one["state"]) for one in record["trials"]]
    text = tuning_text(record)
    assert "operations, 10¹² (estimated)" in text and "Wh" not in text
    assert re.search(r"\| +0\.4000 \| +2 \| trial-001 \|", text) and re.search(r"\| +0\.6123 \| +18 \|", text)


def test_without_a_finalist_there_is_no_winner(record):
    record |= {"finalists": [], "comparison": None}
    assert "There is no winner: no trial could be trained to a score" in tuning_text(record)
    assert "There is no winner" in tuning_page(record)
    record["finalists"] = [finalist("trial-000", 0.6)]
    assert winner_sentence(record) == ("The winner is trial-000 (learning rate 0.001, rank 8, targets query,<value>).")


def test_the_page_shows_every_trial_escapes_text_and_loads_nothing(record):
    page = tuning_page(record)
    for name in ("trial-000", "trial-001", "trial-002"):
        assert f"<td>{name}</td>" in page
    assert "<base>" not in page and "&lt;base&gt; on corpus &amp; more" in page and "query,&lt;value&gt;" in page
    assert page.count("<svg") == 1 and "<title" in page and 'id="front-desc"' in page
    assert not re.search(r"<script|<link|src=|@import|url\(http", page)
    assert "b − a is worse" in page
    assert page == tuning_page(copy.deepcopy(record))

"""Thresholds against a loop, and what is kept on disk."""

import json
import re

import numpy as np
import pytest

import lorakit
from lorakit.training.calibration_file import (
    FILE,
    Calibration,
    folder_of,
    load_calibration,
    save_calibration,
    threshold_of,
)


def outcomes_of(count, seed):
    """Entities whose score is their chance of being right, so a threshold can be judged."""
    random = np.random.default_rng(seed)
    scores = random.uniform(0.5, 1, count).round(3)
    return list(zip(scores.tolist(), (random.uniform(size=count) < scores).tolist(), strict=True))


def test_a_threshold_is_the_least_score_that_keeps_the_promise():
    outcomes = outcomes_of(1000, 0)
    found = threshold_of(outcomes, "DNA", 0.8)
    deciding = sorted(outcomes, key=lambda outcome: -outcome[0])[1::2]  # the others say that it can be promised

    def right_share(least):
        kept = [right for score, right in deciding if score >= least]
        return kept.count(True) / (len(kept) + 1)

    assert found == min(score for score, _ in deciding if right_share(score) >= 0.8)


def test_entities_of_equal_scores_are_all_kept_and_shared_without_looking_whether_they_are_right():
    half = [(0.9, True), (0.9, False)]
    with pytest.raises(ValueError, match="too few to promise a precision of 0.6"):
        threshold_of(half * 500, "DNA", 0.6)  # ranked by being right, every second one would be right
    mixed = [(0.9, number % 7 > 0) for number in range(700)] + [(0.5, number % 3 > 1) for number in range(300)]
    assert threshold_of(mixed, "DNA", 0.8) == 0.9


def test_a_promise_that_most_halves_of_a_set_refuse_is_kept_on_the_others():
    """With one half's luck in both questions, whether and from which score, this keeps 0.567 instead of 0.6."""
    random = np.random.default_rng(0)
    scores = random.uniform(0, 1, 800)
    entities = list(zip(scores.tolist(), (random.random(800) < 0.45 + 0.25 * scores).tolist(), strict=True))
    halves, kept = np.random.default_rng(1), []
    for _ in range(300):
        order = halves.permutation(800)
        one, other = ([entities[i] for i in part] for part in (order[:400], order[400:]))
        try:
            least = threshold_of(one, "DNA", 0.6)
        except ValueError:
            continue
        kept.append(np.mean([right for score, right in other if score >= least]))
    assert 20 < len(kept) < 60
    assert np.mean(kept) == pytest.approx(0.6, abs=0.01)


def test_the_promise_holds_on_new_entities_within_a_point():
    kept = []
    for seed in range(300):
        least = threshold_of(outcomes_of(1500, seed), "DNA", 0.8)
        new = [right for score, right in outcomes_of(1500, 10_000 + seed) if score >= least]
        kept.append(sum(new) / len(new))
    assert np.mean(kept) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "precision", "message"),
    [
        (
            "DNA",
            0.999,
            "too few to promise a precision of 0.999 for DNA: of every second of its 300 entities on the validation",
        ),
        ("RNA", 0.9, "no entity of type 'RNA' was predicted on the validation set; the types are DNA"),
        ("DNA", 1.0, "the precision 1 for DNA must be between 0 and 1"),
    ],
)
def test_what_cannot_be_promised_is_said(kind, precision, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Calibration(1.0, {"DNA": outcomes_of(300, 0)}).threshold(kind, precision)


def test_it_is_kept_beside_the_weights_and_refused_for_others(tiny_model, tmp_path):
    model = lorakit.apply_lora(tiny_model(), r=2)
    lorakit.save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert load_calibration(tmp_path) is None
    kept = Calibration(1.5, {"DNA": [(0.5, True), (0.25, False)]}, "viterbi")
    save_calibration(kept, tmp_path)
    assert load_calibration(tmp_path) == kept
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    record = json.loads((tmp_path / FILE).read_text())
    for broken in ({**record, "temperature": -1}, {**record, "outcomes": 3}, {**record, "decode": "beam"}, []):
        (tmp_path / FILE).write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="is damaged .* run lorakit calibrate again"):
            load_calibration(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({key: value for key, value in record.items() if key != "decode"}))
    with pytest.raises(ValueError, match="does not say which decoder it is for; run lorakit calibrate again"):
        load_calibration(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({**record, "weights": "other"}))
    with pytest.raises(
        ValueError, match="belongs to other weights than those now in its folder; run lorakit calibrate again"
    ):
        load_calibration(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds none of adapter_model.safetensors, model.safetensors"):
        save_calibration(Calibration(1.0, {}), tmp_path)


def test_the_calibration_of_an_adapter_on_a_hub_comes_with_it(tmp_path, monkeypatch):
    import huggingface_hub

    adapter = tmp_path / "snapshot"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    save_calibration(Calibration(2.0, {}, "viterbi"), adapter)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda _, allow_patterns: asked.extend(allow_patterns) or str(adapter)
    )
    assert load_calibration(folder_of("someone/an-adapter", None)).temperature == 2.0
    assert FILE in asked
    assert folder_of(None, str(adapter)) == adapter


def test_a_model_of_the_hub_has_the_calibration_that_is_in_its_cache(tmp_path, monkeypatch):
    """The cache's layout: snapshots by commit, and a file that names the branch's; nothing is fetched."""
    snapshot = tmp_path / "models--someone--tagger" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--tagger" / "refs").mkdir()
    (tmp_path / "models--someone--tagger" / "refs" / "main").write_text(snapshot.name)
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights")):
        (snapshot / name).write_bytes(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    assert folder_of(None, "someone/tagger") == snapshot
    assert load_calibration(snapshot) is None
    save_calibration(Calibration(1.5, {"DNA": [(0.9, True)]}, "viterbi"), snapshot)
    assert load_calibration(folder_of(None, "someone/tagger")).temperature == 1.5
    for other in ("someone/other", "no/such/folder", "../x", ""):
        assert str(folder_of(None, other)) == (other or ".")

"""A run that resumes from what is in its folder, on any number of ranks.

  python -m tests.support.resume_job FOLDER SENTENCES_PER_RANK SECONDS_PER_FORWARD

The variable DIE says who dies in the middle, without a word: "01" is rank 1 of torchrun's first attempt.
"""

import json
import os
import sys
import time

from transformers import AutoTokenizer

import lorakit
from lorakit.training import distributed
from tests.support.tiny import MINI, make_tiny_model
from tests.support.toy import quick, toy_data


def run_job(folder, batch_size, seconds_per_forward=0.0):
    """Train; returns the test scores, the tokens and the steps as JSON."""
    with distributed.process_group():
        model = lorakit.apply_lora(make_tiny_model(), r=4)
        me = os.environ.get("TORCHELASTIC_RESTART_COUNT", "") + os.environ.get("RANK", "")
        calls = []

        def after_forward(*_):
            calls.append(1)
            time.sleep(seconds_per_forward)
            if me and os.environ.get("DIE") == me and len(calls) == 20:
                os._exit(9)

        model.register_forward_hook(after_forward)
        config = quick(epochs=3, log_every=2, batch_size=batch_size, save_every=3, output_dir=folder, resume=True)
        result = lorakit.train(model, AutoTokenizer.from_pretrained(MINI), toy_data(64, 24, 24), config)
        return json.loads(json.dumps([result.test.to_json(), result.train_tokens, result.steps]))


if __name__ == "__main__":
    folder, batch_size, seconds = sys.argv[1:]
    found = run_job(folder, int(batch_size), float(seconds))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))

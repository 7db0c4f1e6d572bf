"""The flags with which a command loads what a mode of a run saved."""


def saved(run, mode):
    return ["--adapter", str(run / "lora" / "adapter")] if mode == "lora" else ["--model", str(run / "full" / "model")]

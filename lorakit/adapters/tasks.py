"""PEFT's names of what a model is for, such as TOKEN_CLS, and the refusal of a model that is for something else."""

from torch import nn

TASKS = {
    "ForTokenClassification": "TOKEN_CLS",
    "ForSequenceClassification": "SEQ_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""PEFT's task_type by the end of the model's class name."""

PEFT_HEADS = {"TOKEN_CLS": ("classifier", "score"), "SEQ_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Heads that PEFT adds to modules_to_save on its own, whether the model has them or not."""

GENERATING = {"CAUSAL_LM", "SEQ_2_SEQ_LM"}
"""Tasks that a class's name does not tell apart: a decoder that sees images is a ForConditionalGeneration too."""


def task_of_model(model: nn.Module) -> str | None:
    """PEFT's task_type for a model; None for a class that has none, or is not known."""
    return next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None)


def refuse_other_task(model: nn.Module, task: str | None, what: str, instead: str) -> None:
    """Refuse a model that is for another task; nothing is refused where either task is not known.

    Args:
        model: a plain model.
        task: PEFT's task_type.
        what: what has this task.
        instead: what to do besides taking a model for it.

    Raises:
        ValueError: the tasks differ, so that the head would be another one, with which the outputs mean nothing.
    """
    mine = task_of_model(model)
    if task and mine and task != mine and not {task, mine} <= GENERATING:
        raise ValueError(
            f"{what} is for {task}, and this {type(model).__name__} is for {mine}; use a model for {task}, or {instead}"
        )

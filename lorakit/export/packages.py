"""The packages that an export needs and lorakit does not."""

from importlib.util import find_spec

NEEDED = {"hf": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "spacy": ("spacy",), "peft": ("peft",)}
TARGETS = tuple(NEEDED)


def check_packages(target: str) -> None:
    """Refuse a target whose packages are not installed.

    Raises:
        ImportError: with the command that installs them.
    """
    missing = [name for name in NEEDED[target] if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"target={target!r} needs {', '.join(missing)}, which is not installed: pip install 'lorakit[{target}]'"
        )

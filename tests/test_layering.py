"""The imports inside the package go one way, as DESIGN's layers say, and `import lorakit` only defines names."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lorakit

ROOT = Path(lorakit.__file__).parent
# A file imports only from the rows above its own. The number is the layer of the design; where a layer's file builds on
# another of the same layer, the layer has several rows.
LAYERS = (
    (0, "autograd trial whole_file"),
    (0, "onednn dropout"),
    (0, "attention fused sharded"),
    (
        0,
        "layers masters frozen optimizer metrics distributed preemption words progress loggers "
        "random_state "  # what is trained
        "config_file json_output "  # what is asked and answered
        "sensors claims clock cuda devices journal ledger legacy rapl readings",  # what it cost
    ),
    (0, "combine initial targets parallel training_log"),
    (0, "lora_config instruments"),
    (1, "lora_state"),
    (1, "counting merging disabling fingerprint"),
    (1, "several"),
    (1, "lora energy ner encoding checkpoint adapter_files"),
    (1, "batching models"),
    (1, "prefix loss graphs"),
    (2, "tagging peft_format"),
    (2, "prediction adapter_card"),
    (2, "adapters smallbase training"),
    (2, "saved"),
    (3, "report energy_cli entity_views"),
    (3, "runs palette"),
    (3, "costs charts"),
    (3, "page"),
    (3, "flags measured_run"),
    (3, "train_cli evaluate_cli predict_cli params_cli report_cli"),
    (3, "cli"),
)
ROW = {name: row for row, (_, names) in enumerate(LAYERS) for name in names.split()}
FILES = sorted(path.stem for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def imports(name: str) -> list[tuple[str, list[str]]]:
    """(module, names) of every import of this package in a file, at any depth, those for type checkers included."""
    found = []
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), [alias.name for alias in node.names]))
    return [(module, names) for module, names in found if module.split(".")[0] in ("", "lorakit")]


def parts(name: str) -> set[str]:
    """The files of this package that a file imports; `from lorakit import ner` counts as ner."""
    found = set()
    for module, names in imports(name):
        found |= {module.split(".")[1]} if "." in module else {part for part in names if part in FILES}
    return found


def reach(name: str) -> set[str]:
    """The file and all it imports, directly or not."""
    found, new = set(), {name}
    while new:
        found |= new
        new = {part for file in new for part in parts(file)} - found
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_lower_layers(name: str) -> None:
    assert name in ROW, (
        f"lorakit/{name}.py is in no layer: add it to LAYERS in tests/test_layering.py and to the design"
    )
    upward = {part for part in parts(name) if ROW.get(part, len(LAYERS)) >= ROW[name]}
    assert not upward, f"lorakit/{name}.py imports {', '.join(sorted(upward))}, which is not below it"


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_the_owner_of_what_it_imports(name: str) -> None:
    """Never the package root, whose names are made on demand, and never a relative path."""
    for module, names in imports(name):
        listed = ", ".join(names)
        assert module != "lorakit", f"lorakit/{name}.py: name the owner, as in `from lorakit.ner import ...`: {listed}"
        assert not module.startswith("."), f"lorakit/{name}.py: no relative import: {module} {listed}"


def test_what_is_trained_and_what_it_cost_never_meet() -> None:
    assert not reach("lora") & reach("energy")
    assert not reach("adapters") & reach("energy")


def test_the_loop_knows_neither_lora_nor_energy() -> None:
    assert not reach("training") & {"lora", "layers", "energy", "sensors"}


FRESH = """
import os, sys
touched = []
class Watched(dict):
    def _note(name):
        def call(self, *arguments):
            touched.append((name, arguments))
            return getattr(dict, name)(self, *arguments)
        return call
    for name in ("__getitem__", "__setitem__", "__delitem__", "__contains__", "get", "setdefault", "update", "pop"):
        locals()[name] = _note(name)
os.environ = Watched(os.environ)
import lorakit
print([name for name in ("torch", "transformers", "datasets", "numpy", "pynvml") if name in sys.modules], touched)
"""


def test_importing_the_package_loads_nothing_heavy_and_reads_no_environment() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, cwd=ROOT.parent)
    assert (done.stdout, done.stderr) == ("[] []\n", "")


def test_the_watch_of_that_test_sees_an_import_and_a_variable() -> None:
    code = FRESH.replace("import lorakit\n", "import numpy; os.getenv('HOME'); os.environ['A'] = 'b'\n")
    environment = {**os.environ, "HOME": "/"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("['numpy']")
    assert "('get', ('HOME', None))" in done.stdout and "('__setitem__', ('A', 'b'))" in done.stdout


def test_public_names_are_sorted_and_each_once() -> None:
    assert list(lorakit.__all__) == sorted(set(lorakit.__all__))


@pytest.mark.parametrize("name", lorakit.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(lorakit, name).__name__ == name
    assert name in dir(lorakit)


def test_type_checkers_see_the_public_names_from_the_same_owners() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lorakit.")
        for alias in node.names
    }
    assert sorted(seen) == list(lorakit.__all__)
    for name, owner in seen.items():
        assert getattr(import_module(owner), name) is getattr(lorakit, name)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match="module 'lorakit' has no attribute 'aply_lora'; it has EnergyMeter, "):
        lorakit.aply_lora  # noqa: B018

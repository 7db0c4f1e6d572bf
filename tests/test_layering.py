"""Imports inside the package go one way, in few layers and without circles; `import lorakit` only defines names."""

import ast
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import lorakit

ROOT = Path(lorakit.__file__).parent
MAY_IMPORT = {
    "__main__": (),
    "_counts": (),
    "_files": (),
    "nn": ("_counts", "_files"),
    "data": ("_counts", "_files"),
    "power": ("_counts", "_files"),
    "adapters": ("_counts", "_files", "nn", "data"),
    "energy": ("_counts", "_files", "power"),
    "lora": ("_counts", "_files", "nn", "adapters"),
    "training": ("_counts", "_files", "nn", "data", "adapters"),
    "report": ("_counts", "_files", "data", "power", "adapters", "energy", "lora", "training"),
    "export": ("_counts", "_files", "data", "adapters", "training"),
    "cli": ("_counts", "_files", "nn", "data", "power", "adapters", "energy", "lora", "training", "report", "export"),
}
"""What the files of a folder (or a file outside of one) may import besides other files of the same folder."""
MOST_LAYERS = 7


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}


def imports(name: str) -> list[tuple[str, list[str]]]:
    """(module, names) of every import of this package in a file, also those in functions and for type checkers.

    Imports by name are not counted: lorakit/__init__.py and cli/__main__.py only hold a table of what they load, and
    lorakit/__main__.py hands over to the latter.
    """
    found = []
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), [alias.name for alias in node.names]))
    return [(module, names) for module, names in found if module.split(".")[0] in ("", "lorakit")]


@cache
def parts(name: str) -> frozenset[str]:
    """The files of this package that a file imports; `from lorakit.data import corpus` counts as data.corpus."""
    found = set()
    for module, names in imports(name):
        inner = module.removeprefix("lorakit").lstrip(".")
        full = {f"{inner}.{part}".lstrip(".") for part in names}
        found |= (full & FILES.keys()) or ({inner} & FILES.keys())
    return frozenset(found - {name})


def reach(name: str) -> set[str]:
    """The file and everything it imports, directly or not."""
    found, new = set(), {name}
    while new:
        found |= new
        new = {part for file in new for part in parts(file)} - found
    return found


@cache
def layer(name: str) -> int:
    """1 for a file that imports nothing of this package, otherwise one more than the highest file it imports."""
    return 1 + max((layer(part) for part in parts(name)), default=0)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_only_from_the_folders_its_own_may_import(name: str) -> None:
    folder = name.split(".")[0]
    assert folder in MAY_IMPORT, f"lorakit/{folder} is in no list: add it to MAY_IMPORT here and to the design"
    others = {part for part in parts(name) if part.split(".")[0] not in (folder, *MAY_IMPORT[folder])}
    assert not others, f"lorakit.{name} imports {', '.join(sorted(others))}, which {folder} may not"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_part_of_no_circle(name: str) -> None:
    circle = {part for part in parts(name) if name in reach(part)}
    assert not circle, f"lorakit.{name} imports {', '.join(sorted(circle))}, which imports it again"


def test_there_are_few_layers() -> None:
    highest = max(FILES, key=layer)
    assert layer(highest) <= MOST_LAYERS, f"lorakit.{highest} is in layer {layer(highest)}"


def test_the_package_has_ten_names() -> None:
    names = {name.split(".")[0] for name in FILES}
    assert names == set(MAY_IMPORT) and len(names - {"__main__", "_counts", "_files"}) == 10


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_the_owner_of_what_it_imports(name: str) -> None:
    """Never the package root, whose names are made on demand, and never a relative path."""
    for module, names in imports(name):
        listed = ", ".join(names)
        assert module != "lorakit", (
            f"lorakit.{name}: name the owner, as in `from lorakit.data.corpus import …`: {listed}"
        )
        assert not module.startswith("."), f"lorakit.{name}: no relative import: {module} {listed}"


def test_what_is_trained_and_what_it_cost_never_meet() -> None:
    assert reach("lora") & reach("energy") <= {"_counts", "_files"}
    assert reach("adapters.storage") & reach("energy") <= {"_counts", "_files"}


def test_the_loop_knows_neither_lora_nor_energy() -> None:
    assert not reach("training.loop") & {"lora", "nn.layers", "energy", "power.nvml"}


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
    with pytest.raises(
        AttributeError, match="module 'lorakit' has no attribute 'aply_lora'; it has AdapterRun, EnergyMeter, "
    ):
        lorakit.aply_lora  # noqa: B018

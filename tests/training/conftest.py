import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from lorakit.training import graphs as graph_engines
from tests.support.toy import toy_data


@pytest.fixture
def graphs(monkeypatch):
    """What is handed to a backend, one entry a graph; it traces forward and backward and runs torch's own kernels."""
    seen, inner = [], lookup_backend("aot_eager")

    def backend(graph, inputs, mode=None):  # on a GPU a mode is asked for
        seen.append(graph)
        return inner(graph, inputs)

    monkeypatch.setattr(graph_engines, "BACKEND", backend)
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def data():
    return toy_data(96, 40, 40)

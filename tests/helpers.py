"""What several test files use."""

import pytest
import torch

from zoo.data import download
from zoo.errors import ZooError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args):
        raise OSError("no network in tests")

    monkeypatch.setattr(download, "_receive", refuse)


def message(call, kind=ZooError) -> str:
    """The text of the error that `call` raises: one sentence."""
    with pytest.raises(kind) as error:
        call()
    said = str(error.value)
    assert "\n" not in said and len(said) < 500
    return said


@pytest.fixture
def double():
    """Everything in float64."""
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestSplit:
    """A data set of images of which only the test split is there."""

    __test__ = False  # pytest would take it for tests

    def __init__(self, images):
        self.images, self.test, self.valid = images, self, None

    def __len__(self):
        return len(self.images)

    def sweeps(self, batch_size):
        return [[{"index": index}] for index in torch.arange(len(self)).split(batch_size)]

    def fetch(self, address):
        return {"image": self.images[address["index"]]}

"""What several test files of the data package use."""

import pytest

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

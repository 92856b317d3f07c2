"""Writes tests/golden/state_dict_keys.json anew: python -m tests.golden. Say why in UPGRADING.md."""

import hashlib
import json
from pathlib import Path

import torch

import zoo


def state_dict_keys() -> dict[str, str]:
    """Preset -> number of entries and digest of its state-dict keys with their shapes."""
    found = {}
    for preset in zoo.list_models():
        with torch.device("meta"):
            state = zoo.create_model(preset).state_dict()
        text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
        found[preset] = f"{len(state)} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return found


if __name__ == "__main__":
    target = Path(__file__).parent / "golden" / "state_dict_keys.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(state_dict_keys(), indent=1) + "\n")

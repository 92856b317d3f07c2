"""One layer of torch's `nn.LSTM` <-> the written-out `modern_cell`."""

import torch
from torch import Tensor

GATES = ("input_gate", "forget_gate", "cell_input", "output_gate")  # torch stacks them in this order


def from_torch(state_dict: dict[str, Tensor], layer: int = 0) -> dict[str, Tensor]:
    """The weights of `modern_cell` that computes what this layer of an `nn.LSTM` computes: its two biases are added."""
    weight = torch.cat([state_dict[f"weight_ih_l{layer}"], state_dict[f"weight_hh_l{layer}"]], dim=1)
    bias = state_dict[f"bias_ih_l{layer}"] + state_dict[f"bias_hh_l{layer}"]
    rows = zip(GATES, weight.chunk(4), bias.chunk(4))
    return {name: value for gate, w, b in rows for name, value in ((f"{gate}.weight", w), (f"{gate}.bias", b))}


def to_torch(state_dict: dict[str, Tensor], layer: int = 0) -> dict[str, Tensor]:
    """The other way: b_hh is zero."""
    weight = torch.cat([state_dict[f"{gate}.weight"] for gate in GATES])
    bias = torch.cat([state_dict[f"{gate}.bias"] for gate in GATES])
    hidden = len(bias) // 4
    return {
        f"weight_ih_l{layer}": weight[:, :-hidden],
        f"weight_hh_l{layer}": weight[:, -hidden:],
        f"bias_ih_l{layer}": bias,
        f"bias_hh_l{layer}": torch.zeros_like(bias),
    }

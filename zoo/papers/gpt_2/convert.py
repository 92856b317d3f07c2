"""transformers' parameter names <-> ours. Its `Conv1D` stores y = x W, `nn.Linear` y = W x: matrices are transposed."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

LAYERS = {  # of a block: theirs -> ours
    "ln_1": "norm1",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OTHERS = {"wte.weight": "token_embedding.weight", "wpe.weight": "position_embedding", "ln_f.weight": "norm.weight", "ln_f.bias": "norm.bias"}


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `GPT2LMHeadModel` or `GPT2Model`, or of a published file (openai-community/gpt2), under our names.

    Values are shared, not copied. The causal masks that old files keep are left out; so is the output layer, which must be the embedding.

    Raises:
        ValueError: names a parameter that GPT-2 does not have; or the output layer, if it is not tied.
    """
    renamed = {}
    for name, value in state_dict.items():
        short = name.removeprefix("transformer.")
        match = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", short)
        if short in OTHERS:
            renamed[OTHERS[short]] = value
        elif match and match[2] in LAYERS:
            renamed[f"blocks.{match[1]}.{LAYERS[match[2]]}.{match[3]}"] = value.T if value.ndim == 2 else value
        elif short != "lm_head.weight" and not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", short):
            raise ValueError(f"{name!r} has no place in a GPT-2: leave it out, or convert another model")
    head = state_dict.get("lm_head.weight")
    if head is not None and not torch.equal(head, renamed["token_embedding.weight"]):
        raise ValueError("'lm_head.weight' differs from the embedding 'wte.weight': GPT-2 has one matrix for both")
    return renamed


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the state dict of a `GPT2LMHeadModel`; its output layer is the same tensor as its embedding.

    Raises:
        ValueError: names a parameter that a GPT-2 of this zoo does not have.
    """
    layers, others = ({ours: theirs for theirs, ours in names.items()} for names in (LAYERS, OTHERS))
    renamed = {}
    for name, value in state_dict.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in others:
            renamed[f"transformer.{others[name]}"] = value
        elif match and match[2] in layers:
            renamed[f"transformer.h.{match[1]}.{layers[match[2]]}.{match[3]}"] = value.T.contiguous() if value.ndim == 2 else value
        else:
            raise ValueError(f"{name!r} is no parameter of GPT-2")
    return renamed | {"lm_head.weight": renamed["transformer.wte.weight"]}

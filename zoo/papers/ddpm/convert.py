"""diffusers' parameter names (`UNet2DModel`, such as google/ddpm-cifar10-32) <-> ours."""

import re

import torch
from torch import Tensor

THEIRS_AND_OURS = [
    ("mid_block.resnets.0.", "middle.block1."),
    ("mid_block.attentions.0.", "middle.attention."),
    ("mid_block.resnets.1.", "middle.block2."),
    ("down_blocks.", "down."),
    ("up_blocks.", "up."),
    ("resnets.", "blocks."),
    ("downsamplers.0.conv.", "downsample."),
    ("upsamplers.0.conv.", "upsample."),
    ("time_embedding.linear_1.", "time.0."),
    ("time_embedding.linear_2.", "time.2."),
    ("time_emb_proj.", "time_proj."),
    ("conv_shortcut.", "shortcut."),
    ("group_norm.", "norm."),
    ("to_out.0.", "proj."),
    ("conv_norm_out.", "norm_out."),
]
# Files on the hub are older than these names.
OLD_AND_NEW = [("query.", "to_q."), ("key.", "to_k."), ("value.", "to_v."), ("proj_attn.", "to_out.0.")]


def from_diffusers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the state dict of a `UNet2DModel` that has the paper's layout, and joins its query, key and value projections.

    With classes its `num_class_embeds` is our `num_classes` + 1, for the null class; the names of those vectors are the same.
    """
    state_dict = {_rename(_rename(name, OLD_AND_NEW), THEIRS_AND_OURS): value for name, value in state_dict.items()}
    renamed = {}
    for name, value in state_dict.items():
        if "to_q." in name:
            parts = [state_dict[name.replace("to_q.", to)] for to in ("to_q.", "to_k.", "to_v.")]
            renamed[name.replace("to_q.", "qkv.")] = torch.cat(parts)
        elif "to_k." not in name and "to_v." not in name:
            renamed[name] = value
    return renamed


def to_diffusers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `from_diffusers`, in diffusers' present names."""
    renamed = {}
    for name, value in state_dict.items():
        theirs = _rename(name, [(ours, theirs) for theirs, ours in THEIRS_AND_OURS])
        if "qkv." in theirs:
            renamed |= {theirs.replace("qkv.", to): part for to, part in zip(("to_q.", "to_k.", "to_v."), value.chunk(3))}
        else:
            renamed[theirs] = value
    return renamed


def _rename(name: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = re.sub(rf"(?<!\w){re.escape(old)}", new, name)  # whole words: proj. is not part of time_proj.
    return name

"""Parameter names of torchvision, timm, transformers and of the authors' code -> ours; and ours -> timm's."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Rules = dict[str, str]  # pattern of a whole name -> our name

TORCHVISION: Rules = {
    r"class_token": "class_token",
    r"conv_proj\.(weight|bias)": r"embedding.\1",
    r"encoder\.pos_embedding": "positions.table",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)": r"blocks.\1.attention.qkv.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)": r"blocks.\1.attention.out.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"encoder\.ln\.(\w+)": r"norm.\1",
    r"heads\.(head|pre_logits)\.(\w+)": r"\1.\2",
}

TIMM: Rules = {
    r"cls_token": "class_token",
    r"pos_embed": "positions.table",
    r"patch_embed\.proj\.(\w+)": r"embedding.\1",
    r"patch_embed\.backbone\.stem\.(conv|norm)\.(\w+)": r"stem.\1.\2",
    r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(conv|norm)([123])\.(\w+)": r"stem.stages.\1.\2.\3\4.\5",
    r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.downsample\.conv\.(\w+)": r"stem.stages.\1.\2.shortcut.0.\3",
    r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.downsample\.norm\.(\w+)": r"stem.stages.\1.\2.shortcut.1.\3",
    r"blocks\.(\d+)\.norm([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    r"blocks\.(\d+)\.attn\.qkv\.(\w+)": r"blocks.\1.attention.qkv.\2",
    r"blocks\.(\d+)\.attn\.proj\.(\w+)": r"blocks.\1.attention.out.\2",
    r"blocks\.(\d+)\.mlp\.fc([12])\.(\w+)": r"blocks.\1.mlp.fc\2.\3",
    r"norm\.(\w+)": r"norm.\1",
    r"head\.(\w+)": r"head.\1",
    r"pre_logits\.fc\.(\w+)": r"pre_logits.\1",  # as older versions of timm call it
}

TRANSFORMERS: Rules = {  # of version 5, and as published files have them
    r"(?:vit\.)?embeddings\.cls_token": "class_token",
    r"(?:vit\.)?embeddings\.position_embeddings": "positions.table",
    r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.(\w+)": r"embedding.\1",
    r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.(\w+)": r"blocks.\1.norm1.\2",
    r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.(\w+)": r"blocks.\1.norm2.\2",
    r"(?:vit\.)?layers\.(\d+)\.attention\.([qkv])_proj\.(\w+)": r"blocks.\1.attention.\2.\3",
    r"(?:vit\.)?encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)": r"blocks.\1.attention.\2.\3",
    r"(?:vit\.)?(?:encoder\.layer\.(\d+)\.attention\.output\.dense|layers\.(\d+)\.attention\.o_proj)\.(\w+)": r"blocks.\1\2.attention.out.\3",
    r"(?:vit\.)?(?:encoder\.layer\.(\d+)\.intermediate\.dense|layers\.(\d+)\.mlp\.fc1)\.(\w+)": r"blocks.\1\2.mlp.fc1.\3",
    r"(?:vit\.)?(?:encoder\.layer\.(\d+)\.output\.dense|layers\.(\d+)\.mlp\.fc2)\.(\w+)": r"blocks.\1\2.mlp.fc2.\3",
    r"(?:vit\.)?layernorm\.(\w+)": r"norm.\1",
    r"(?:vit\.)?pooler\.dense\.(\w+)": r"pre_logits.\1",
    r"classifier\.(\w+)": r"head.\1",
}

_BLOCK = r"Transformer/encoderblock_(\d+)/"  # within one, flax counted all modules once (0, 1, 2, 3), and by their kind today (0, 0, 1, 0)
OFFICIAL: Rules = {
    r"cls": "class_token",
    r"Transformer/posembed_input/pos_embedding": "positions.table",
    r"embedding/(kernel|bias)": r"embedding.\1",
    _BLOCK + r"LayerNorm_0/(\w+)": r"blocks.\1.norm1.\2",
    _BLOCK + r"LayerNorm_[12]/(\w+)": r"blocks.\1.norm2.\2",
    _BLOCK + r"MultiHeadDotProductAttention_[01]/(query|key|value|out)/(\w+)": r"blocks.\1.attention.\2.\3",
    _BLOCK + r"MlpBlock_[03]/Dense_0/(\w+)": r"blocks.\1.mlp.fc1.\2",
    _BLOCK + r"MlpBlock_[03]/Dense_1/(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"Transformer/encoder_norm/(\w+)": r"norm.\1",
    r"(pre_logits|head)/(\w+)": r"\1.\2",
    r"conv_root/(\w+)": r"stem.conv.\1",
    r"gn_root/(\w+)": r"stem.norm.\1",
    r"block(\d+)/unit(\d+)/conv([123])/(\w+)": r"stem.stages.\1.\2.conv\3.\4",
    r"block(\d+)/unit(\d+)/gn([123])/(\w+)": r"stem.stages.\1.\2.norm\3.\4",
    r"block(\d+)/unit(\d+)/conv_proj/(\w+)": r"stem.stages.\1.\2.shortcut.0.\3",
    r"block(\d+)/unit(\d+)/gn_proj/(\w+)": r"stem.stages.\1.\2.shortcut.1.\3",
}


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a torchvision `vit_*` state dict; values are shared, not copied.

    Raises:
        ValueError: names a parameter that a ViT does not have; so do the other converters.
    """
    return _one_table(_renamed(state_dict, TORCHVISION, "torchvision"))


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a timm `vit_*_patch*` or `vit_base_r50_s16_*` state dict; values are shared, not copied.

    `fc_norm`, which timm has where it averages patches, is refused: it normalises the mean, while the paper's code takes the mean of what is
    normalised. timm's hybrids have eps 1e-5 in their group norms, ours the authors' 1e-6.
    """
    return _one_table(_renamed(state_dict, TIMM, "timm"))


def to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: timm's names for a ViT or hybrid with 1-D positions; `pool: mean` goes with its global_pool='avg', fc_norm=False.

    Raises:
        ValueError: names a parameter that timm's ViTs do not have (2-D positions, the hidden layer of the pre-training head).
    """
    rules = {
        r"class_token": "cls_token",
        r"positions\.table": "pos_embed",
        r"embedding\.(\w+)": r"patch_embed.proj.\1",
        r"stem\.(conv|norm)\.(\w+)": r"patch_embed.backbone.stem.\1.\2",
        r"stem\.stages\.(\d+)\.(\d+)\.(conv|norm)([123])\.(\w+)": r"patch_embed.backbone.stages.\1.blocks.\2.\3\4.\5",
        r"stem\.stages\.(\d+)\.(\d+)\.shortcut\.0\.(\w+)": r"patch_embed.backbone.stages.\1.blocks.\2.downsample.conv.\3",
        r"stem\.stages\.(\d+)\.(\d+)\.shortcut\.1\.(\w+)": r"patch_embed.backbone.stages.\1.blocks.\2.downsample.norm.\3",
        r"blocks\.(\d+)\.attention\.qkv\.(\w+)": r"blocks.\1.attn.qkv.\2",
        r"blocks\.(\d+)\.attention\.out\.(\w+)": r"blocks.\1.attn.proj.\2",
        r"(blocks\.\d+\.(?:norm|mlp\.fc)[12]\.\w+|(?:norm|head)\.\w+)": r"\1",
    }
    renamed = _renamed(state_dict, rules, "this zoo")
    return {name: value[None] if name == "pos_embed" else value for name, value in renamed.items()}


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a `ViTForImageClassification` or `ViTModel` state dict and joins queries, keys and values.

    The names are those of the library's version 5 or of published files. A `ViTModel`'s pooler is the hidden layer of `pretraining_head`. Its
    configurations say layer_norm_eps 1e-12, ours 1e-6, which moves the outputs a little.
    """
    return _joined(_one_table(_renamed(state_dict, TRANSFORMERS, "transformers")))


def from_official(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' files (github.com/google-research/vision_transformer), as `numpy.load(file)` gives them, hybrids included; tensors do as well.

    flax stores y = x K, torch y = W x, and heads are axes of their own there: q, k and v are (D, k, D / k), the projection (k, D / k, D).
    """
    renamed = {}
    for name, value in _renamed(arrays, OFFICIAL, "the official layout").items():
        value = torch.as_tensor(value)
        if name.startswith("stem.") and "conv" not in name and "shortcut.0" not in name:
            value = value.flatten()  # group norms, which older files have as (1, 1, 1, C)
        if re.search(r"\.(query|key|value)\.(kernel|bias)$", name):
            value = value.flatten(-2)
        if name.endswith(".out.kernel"):
            value = value.flatten(0, 1)
        if name.endswith(".kernel"):
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = re.sub(r"^stem\.stages\.(\d+)\.(\d+)", lambda match: f"stem.stages.{int(match[1]) - 1}.{int(match[2]) - 1}", name)
        renamed[re.sub(r"\.(kernel|scale)$", ".weight", name)] = value
    return _joined(_one_table(renamed))


def _renamed(state_dict: Mapping[str, Any], rules: Rules, source: str) -> dict[str, Any]:
    renamed = {}
    for name in state_dict:
        match, ours = next(((match, ours) for theirs, ours in rules.items() if (match := re.fullmatch(theirs, name))), (None, None))
        if match is None:
            raise ValueError(f"{name!r} has no place in the ViT that these names of {source} are for: leave it out, or convert another model")
        renamed[match.expand(ours)] = state_dict[name]
    return renamed


def _one_table(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The position table without the batch axis that all others have."""
    return {name: value[0] if name == "positions.table" else value for name, value in state_dict.items()}


def _joined(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values as one layer of 3 D outputs."""
    parts = re.compile(r"(blocks\.\d+\.attention)\.(q|k|v|query|key|value)\.(weight|bias)")
    joined, pieces = {}, {}
    for name, value in state_dict.items():
        if match := parts.fullmatch(name):
            pieces.setdefault(f"{match[1]}.qkv.{match[3]}", {})[match[2][0]] = value
        else:
            joined[name] = value
    return joined | {name: torch.cat([piece[key] for key in "qkv"]) for name, piece in pieces.items()}

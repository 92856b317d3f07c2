"""Parameter names of torch.nn.Transformer and of transformers' Marian models -> ours."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

TORCH = {  # pattern of a whole name -> our name
    r"(encoder|decoder)\.layers\.(\d+)\.self_attn\.in_proj_(\w+)": r"\1.\2.self_attention.qkv.\3",
    r"(encoder|decoder)\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)": r"\1.\2.self_attention.out.\3",
    r"decoder\.layers\.(\d+)\.multihead_attn\.in_proj_(\w+)": r"decoder.\1.memory_attention.qkv.\2",
    r"decoder\.layers\.(\d+)\.multihead_attn\.out_proj\.(\w+)": r"decoder.\1.memory_attention.out.\2",
    r"(encoder|decoder)\.layers\.(\d+)\.linear([12])\.(\w+)": r"\1.\2.feed_forward.fc\3.\4",
    r"(encoder|decoder)\.layers\.(\d+)\.norm([123])\.(\w+)": r"\1.\2.norm\3.\4",
}

_LAYER = r"(?:model\.)?(encoder|decoder)\.layers\.(\d+)\."
_DECODER_LAYER = r"(?:model\.)?decoder\.layers\.(\d+)\."
_ENCODER_LAYER = r"(?:model\.)?encoder\.layers\.(\d+)\."
MARIAN = {
    r"(?:(?:model\.)?(?:shared|(?:en|de)coder\.embed_tokens)|lm_head)\.weight": "embedding.weight",
    r"final_logits_bias": "output_bias",
    _LAYER + r"self_attn\.([qkv])_proj\.(\w+)": r"\1.\2.self_attention.\3.\4",
    _LAYER + r"self_attn\.out_proj\.(\w+)": r"\1.\2.self_attention.out.\3",
    _LAYER + r"self_attn_layer_norm\.(\w+)": r"\1.\2.norm1.\3",
    _DECODER_LAYER + r"encoder_attn\.([qkv])_proj\.(\w+)": r"decoder.\1.memory_attention.\2.\3",
    _DECODER_LAYER + r"encoder_attn\.out_proj\.(\w+)": r"decoder.\1.memory_attention.out.\2",
    _DECODER_LAYER + r"encoder_attn_layer_norm\.(\w+)": r"decoder.\1.norm2.\2",
    _LAYER + r"fc([12])\.(\w+)": r"\1.\2.feed_forward.fc\3.\4",
    _ENCODER_LAYER + r"final_layer_norm\.(\w+)": r"encoder.\1.norm2.\2",
    _DECODER_LAYER + r"final_layer_norm\.(\w+)": r"decoder.\1.norm3.\2",
}


def from_torch(state_dict: Mapping[str, Tensor], embedding: Tensor) -> dict[str, Tensor]:
    """The state dict of a `Transformer(bias=True)` out of a torch.nn.Transformer's (norm_first=False), which has no embeddings.

    Its layer norms have eps 1e-5 by default, ours 1e-6. By default it has one more norm after each stack, which the paper's doesn't:
    such a model is refused. Without: nn.Transformer(custom_encoder=nn.TransformerEncoder(layer, N), custom_decoder=...).

    Args:
        embedding: (V, D), for source, target and logits. The bias of the logits becomes 0.

    Raises:
        ValueError: if there are final norms, or names a parameter that is not nn.Transformer's.
    """
    if final := [name for name in state_dict if re.fullmatch(r"(encoder|decoder)\.norm\.(weight|bias)", name)]:
        raise ValueError(
            f"{final[0]!r}: nn.Transformer normalises once more after each stack, the paper doesn't, and no weights of ours make up for it: "
            "build it with custom_encoder and custom_decoder, without a norm"
        )
    renamed = _renamed(state_dict, TORCH, "torch.nn.Transformer")
    for name in [name for name in renamed if ".memory_attention.qkv." in name]:
        for key, value in zip("qkv", renamed.pop(name).chunk(3)):
            renamed[name.replace("qkv", key)] = value
    return _joined(renamed) | {"embedding.weight": embedding, "output_bias": embedding.new_zeros(len(embedding))}


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Transformer(bias=True, activation=..., pad=...)` out of a `MarianMTModel`'s.

    Marian has all sines before all cosines, ours alternate as in the paper: the D channels are put into our order wherever they occur, which
    changes nothing else. Published models have activation='swish', pad = their config.pad_token_id, and layer norms with eps 1e-5, ours 1e-6;
    they begin a target with the padding token.

    Raises:
        ValueError: if source, target and logits don't share one embedding, or names a parameter that is not Marian's.
    """
    kept = {name: value for name, value in state_dict.items() if not name.endswith(".embed_positions.weight")}  # computed, not learned
    return _joined({ours: _alternate(ours, value) for ours, value in _renamed(kept, MARIAN, "MarianMTModel").items()})


def _alternate(name: str, value: Tensor) -> Tensor:
    """Channels 0 .. D - 1 of what flows through the layers in the order 0, D/2, 1, D/2 + 1, ..., in columns or rows, where they are."""
    if re.search(r"(embedding|\.[qkv]|fc1)\.weight$", name):
        return value.unflatten(-1, (2, -1)).mT.flatten(-2)
    if re.search(r"(out|fc2|norm\d)\.(weight|bias)$", name):
        return value.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
    return value.flatten() if name == "output_bias" else value  # (1, V) there


def _renamed(state_dict: Mapping[str, Tensor], rules: dict[str, str], source: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        match, ours = next(((match, ours) for theirs, ours in rules.items() if (match := re.fullmatch(theirs, name))), (None, None))
        if match is None:
            raise ValueError(f"{name!r} is not a parameter of {source}: leave it out, or convert another model")
        ours = match.expand(ours)
        if ours in renamed and not torch.equal(renamed[ours], value):
            raise ValueError(f"{name!r} differs from another {ours}: this model has one for source, target and logits")
        renamed[ours] = value
    return renamed


def _joined(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of each self-attention as one layer; keys and values of attention to the memory as one for all layers."""
    joined: dict[str, Tensor] = {}
    pieces: dict[str, dict[tuple[int, int], Tensor]] = {}
    for name, value in state_dict.items():
        if match := re.fullmatch(r"((?:en|de)coder\.\d+\.self_attention)\.([qkv])\.(\w+)", name):
            pieces.setdefault(f"{match[1]}.qkv.{match[3]}", {})[0, "qkv".index(match[2])] = value
        elif match := re.fullmatch(r"decoder\.(\d+)\.memory_attention\.([kv])\.(\w+)", name):
            pieces.setdefault(f"memory_kv.{match[3]}", {})[int(match[1]), "kv".index(match[2])] = value
        else:
            joined[name] = value
    return joined | {name: torch.cat([piece[key] for key in sorted(piece)]) for name, piece in pieces.items()}

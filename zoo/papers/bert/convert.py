"""Parameter names of transformers and of the authors' TensorFlow checkpoints <-> ours."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Rules = dict[str, str]  # pattern of a whole name -> our name

TRANSFORMERS: Rules = {  # a BertModel's names are those of a model with a head without "bert."
    r"(?:bert\.)?embeddings\.(word|position)_embeddings\.weight": r"embeddings.\1.weight",
    r"(?:bert\.)?embeddings\.token_type_embeddings\.weight": "embeddings.segment.weight",
    r"(?:bert\.)?embeddings\.LayerNorm\.(\w+)": r"embeddings.norm.\1",
    r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(\w+)": r"layers.\1.attention.\2.\3",
    r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)": r"layers.\1.attention.out.\2",
    r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)": r"layers.\1.norm1.\2",
    r"(?:bert\.)?encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)": r"layers.\1.fc1.\2",
    r"(?:bert\.)?encoder\.layer\.(\d+)\.output\.dense\.(\w+)": r"layers.\1.fc2.\2",
    r"(?:bert\.)?encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)": r"layers.\1.norm2.\2",
    r"(?:bert\.)?pooler\.dense\.(\w+)": r"pooler.\1",
    r"cls\.predictions\.transform\.dense\.(\w+)": r"head.transform.\1",
    r"cls\.predictions\.transform\.LayerNorm\.(\w+)": r"head.norm.\1",
    r"cls\.predictions\.bias": "head.bias",
    r"cls\.seq_relationship\.(\w+)": r"next.\1",
    r"(?:classifier|qa_outputs)\.(\w+)": r"head.linear.\1",
}
# Buffers of old files, and second names of tied tensors.
TWINS = r"(?:bert\.)?embeddings\.(?:position_ids|token_type_ids)|cls\.predictions\.decoder\.(?:weight|bias)"

TO_TRANSFORMERS: Rules = {
    r"embeddings\.(word|position)\.weight": r"embeddings.\1_embeddings.weight",
    r"embeddings\.segment\.weight": "embeddings.token_type_embeddings.weight",
    r"embeddings\.norm\.(\w+)": r"embeddings.LayerNorm.\1",
    r"layers\.(\d+)\.attention\.(query|key|value)\.(\w+)": r"encoder.layer.\1.attention.self.\2.\3",
    r"layers\.(\d+)\.attention\.out\.(\w+)": r"encoder.layer.\1.attention.output.dense.\2",
    r"layers\.(\d+)\.norm1\.(\w+)": r"encoder.layer.\1.attention.output.LayerNorm.\2",
    r"layers\.(\d+)\.fc1\.(\w+)": r"encoder.layer.\1.intermediate.dense.\2",
    r"layers\.(\d+)\.fc2\.(\w+)": r"encoder.layer.\1.output.dense.\2",
    r"layers\.(\d+)\.norm2\.(\w+)": r"encoder.layer.\1.output.LayerNorm.\2",
    r"pooler\.(\w+)": r"pooler.dense.\1",
    r"head\.transform\.(\w+)": r"cls.predictions.transform.dense.\1",
    r"head\.norm\.(\w+)": r"cls.predictions.transform.LayerNorm.\1",
    r"head\.bias": "cls.predictions.bias",
    r"next\.(\w+)": r"cls.seq_relationship.\1",
    r"head\.linear\.(\w+)": r"classifier.\1",
}

OPTIMIZER = r".*/adam_[mv]|global_step"  # what a TensorFlow checkpoint has besides the weights


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the state dict of a `BertModel`, `BertForPreTraining` or another `BertFor...` and joins queries, keys and values.

    Old files call the weight and bias of a norm gamma and beta. Load it into a `Bert` with the head that the model has; a head "classification" and
    a head "tagging" both come from `classifier`.

    Raises:
        ValueError: names a parameter that BERT does not have; so do the other converters.
    """
    modern = {re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name)): value for name, value in state_dict.items()}
    return joined(renamed({name: value for name, value in modern.items() if not re.fullmatch(TWINS, name)}, TRANSFORMERS, "transformers"))


def to_transformers(state_dict: Mapping[str, Tensor], spans: bool = False) -> dict[str, Tensor]:
    """The way back, tied tensors under all their names: of a `Bert` without a head to `BertModel`, else to the `BertFor...` with that head.

    Args:
        spans: the head is that of `BertForQuestionAnswering`, whose name for it differs.
    """
    found = renamed(parted(state_dict), TO_TRANSFORMERS, "this zoo")
    if spans:
        found = {re.sub(r"^classifier\.", "qa_outputs.", name): value for name, value in found.items()}
    if any(name.startswith("head.") for name in state_dict):
        found = {name if re.match(r"cls\.|classifier\.|qa_outputs\.", name) else f"bert.{name}": value for name, value in found.items()}
    if "cls.predictions.bias" in found:
        found["cls.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"]
        found["cls.predictions.decoder.bias"] = found["cls.predictions.bias"]
    return found


def from_official(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The variables of the authors' TensorFlow checkpoints (github.com/google-research/bert), by name, as arrays or tensors.

    TensorFlow's layers compute y = x K, torch's y = W x. What belongs to the optimizer is left out; so may be, by the caller, variables of a task.
    """
    state = {}
    for name, value in arrays.items():
        if re.fullmatch(OPTIMIZER, name):
            continue
        value = torch.as_tensor(value)
        state[_from_tensorflow(name)] = value.T.contiguous() if name.endswith("/kernel") else value
    return from_transformers(state)


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the names and orientations of a checkpoint of the authors, for a `Bert` with head "pretraining", "masked", "pooler" or None."""
    found = {}
    for name, value in to_transformers(state_dict).items():
        if re.fullmatch(TWINS, name):
            continue
        name = name if re.match(r"bert\.|cls\.|classifier\.", name) else f"bert.{name}"
        kernel = value.ndim == 2 and "embeddings" not in name and "seq_relationship" not in name
        found[_to_tensorflow(name, kernel)] = value.T.contiguous() if kernel else value
    return found


def _from_tensorflow(name: str) -> str:
    """bert/encoder/layer_0/output/dense/kernel -> bert.encoder.layer.0.output.dense.weight."""
    name = re.sub(r"/layer_(\d+)/", r"/layer/\1/", name)
    name = re.sub(r"/output_(weight|bias)s?$", r"/\1", name)
    name = re.sub(r"/(?:\w+_)embeddings$", r"\g<0>/weight", name)
    return re.sub(r"/kernel$", "/weight", name).replace("/", ".")


def _to_tensorflow(name: str, kernel: bool) -> str:
    name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name))
    name = re.sub(r"cls\.seq_relationship\.weight$", "cls.seq_relationship.output_weights", name)
    name = re.sub(r"(cls\.predictions|cls\.seq_relationship)\.bias$", r"\1.output_bias", name)
    name = re.sub(r"_embeddings\.weight$", "_embeddings", name)
    name = re.sub(r"\.weight$", ".kernel", name) if kernel else name
    return re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", name).replace(".", "/")


def renamed(state_dict: Mapping[str, Tensor], rules: Rules, source: str) -> dict[str, Tensor]:
    """Every name by the first rule that fits it; ValueError where none does."""
    found = {}
    for name, value in state_dict.items():
        match, ours = next(((match, ours) for theirs, ours in rules.items() if (match := re.fullmatch(theirs, name))), (None, None))
        if match is None:
            raise ValueError(f"{name!r} has no place in the model that these names of {source} are for: leave it out, or convert another model")
        found[match.expand(ours)] = value
    return found


def joined(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values as one layer of 3 D outputs."""
    found, pieces = {}, {}
    for name, value in state_dict.items():
        if match := re.fullmatch(r"(layers\.\d+\.attention)\.(query|key|value)\.(weight|bias)", name):
            pieces.setdefault(f"{match[1]}.qkv.{match[3]}", {})[match[2]] = value
        else:
            found[name] = value
    return found | {name: torch.cat([piece[key] for key in ("query", "key", "value")]) for name, piece in pieces.items()}


def parted(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `joined`."""
    found = {}
    for name, value in state_dict.items():
        if ".qkv." in name:
            found |= {name.replace("qkv", key): part for key, part in zip(("query", "key", "value"), value.chunk(3))}
        else:
            found[name] = value
    return found

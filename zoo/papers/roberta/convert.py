"""transformers' parameter names <-> ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from ..bert.convert import TO_TRANSFORMERS, TRANSFORMERS, TWINS, joined, parted, renamed

FROM = {
    **TRANSFORMERS,
    r"lm_head\.dense\.(\w+)": r"head.transform.\1",
    r"lm_head\.layer_norm\.(\w+)": r"head.norm.\1",
    r"lm_head\.bias": "head.bias",
    r"classifier\.dense\.(\w+)": r"head.dense.\1",
    r"classifier\.out_proj\.(\w+)": r"head.linear.\1",
}
TO = {
    **TO_TRANSFORMERS,
    r"head\.transform\.(\w+)": r"lm_head.dense.\1",
    r"head\.norm\.(\w+)": r"lm_head.layer_norm.\1",
    r"head\.bias": "lm_head.bias",
    r"head\.dense\.(\w+)": r"classifier.dense.\1",
}
UNUSED = rf"{TWINS}|lm_head\.decoder\.(?:weight|bias)|pooler\..*"  # RoBERTa has no pooler: what files have there was never trained


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the state dict of a `RobertaModel` or a `RobertaFor...` and joins queries, keys and values.

    Raises:
        ValueError: names a parameter that RoBERTa does not have.
    """
    names = {name: name.removeprefix("roberta.") for name in state_dict}
    return joined(renamed({short: state_dict[name] for name, short in names.items() if not re.fullmatch(UNUSED, short)}, FROM, "transformers"))


def to_transformers(state_dict: Mapping[str, Tensor], spans: bool = False) -> dict[str, Tensor]:
    """The way back, tied tensors under all their names: without a head to a `RobertaModel` that has no pooler, else to the `RobertaFor...` with it.

    Args:
        spans: the head is that of `RobertaForQuestionAnswering`, whose name for it differs.
    """
    found = renamed(parted(state_dict), TO, "this zoo")
    sentence = "head.dense.weight" in state_dict
    found = {re.sub(r"^classifier\.(weight|bias)$", r"classifier.out_proj.\1", name) if sentence else name: v for name, v in found.items()}
    if spans:
        found = {re.sub(r"^classifier\.", "qa_outputs.", name): value for name, value in found.items()}
    if any(name.startswith("head.") for name in state_dict):
        found = {name if re.match(r"lm_head\.|classifier\.|qa_outputs\.", name) else f"roberta.{name}": value for name, value in found.items()}
    if "lm_head.bias" in found:
        found["lm_head.decoder.weight"] = found["roberta.embeddings.word_embeddings.weight"]
        found["lm_head.decoder.bias"] = found["lm_head.bias"]
    return found

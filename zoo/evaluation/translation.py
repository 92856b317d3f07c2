"""How good are translations? For a SequenceToSequence objective and data of pairs (zoo/data/pairs.py)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from zoo.data.base import Data, Split
from zoo.errors import ConfigError
from zoo.objectives.beam_search import PAD


def bleu(
    objective: nn.Module,
    data: Data,
    generator: torch.Generator,
    split: str = "test",
    beam: int = 4,
    alpha: float = 0.6,
    extra: int = 50,
    batch_size: int = 64,
) -> dict[str, float | str]:
    """Corpus BLEU of a split by sacrebleu (Post, 2018, arXiv:1804.08771), of text as people write it against the references as they were read.

    Published figures are often of text in tokens, or in lower case, and higher: compare those of equal signatures.

    Args:
        split: test, valid or train.
        beam, alpha, extra: see zoo.objectives.beam_search.
        batch_size: sentences translated at a time.

    Returns:
        bleu: 0 to 100. bleu_signature: what sacrebleu did, and its version. exact: the percentage of translations equal to their references.
    """
    from sacrebleu.metrics import BLEU

    pairs = pairs_of(data, split)
    found, _ = translations(objective, data, pairs.texts("source"), beam, alpha, extra, batch_size)
    references = pairs.texts("target")
    metric = BLEU()
    score = metric.corpus_score(found, [references]).score
    equal = sum(hypothesis == reference for hypothesis, reference in zip(found, references))
    return {"bleu": score, "exact": 100 * equal / len(references), "bleu_signature": str(metric.get_signature())}


def samples_of(objective: nn.Module, data: Data, split: str, n: int) -> list[tuple[str, str, str]]:
    """The first n pairs of a split with the model's translation: (source, reference, translation)."""
    pairs = pairs_of(data, split)
    sources, references = pairs.texts("source")[:n], pairs.texts("target")[:n]
    return list(zip(sources, references, translations(objective, data, sources)[0]))


def translations(
    objective: nn.Module, data: Data, texts: list[str], beam: int = 4, alpha: float = 0.6, extra: int = 50, batch_size: int = 64
) -> tuple[list[str], int]:
    """The translation of each text, and how many texts were too long and cut to `data.max_length` tokens.

    Texts of like length are translated together, the longest first. An empty text stays empty.
    """
    device, longest = next(objective.parameters()).device, data.facts.get("max_length", math.inf)
    sources = [data.encode(text) for text in texts]
    cut = sum(len(source) > longest for source in sources)
    sources = [shortened(source, longest) for source in sources]
    order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: -len(sources[i]))
    found = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        source = pad_sequence([sources[i] for i in part], batch_first=True, padding_value=PAD).to(device)
        for i, text in zip(part, data.decode(objective.translate(source, beam, alpha, extra))):
            found[i] = text
    return found, cut


def shortened(ids: Tensor, longest: float) -> Tensor:
    """At most so many tokens, EOS the last of them: (T,) -> (T',)."""
    return ids if len(ids) <= longest else torch.cat([ids[: longest - 1], ids[-1:]])


def pairs_of(data: Data, split: str) -> Split:
    """A split of pairs of texts, or ConfigError."""
    pairs = getattr(data, split, None)
    if not hasattr(pairs, "texts"):
        there = [name for name in ("train", "valid", "test") if hasattr(getattr(data, name), "texts")]
        raise ConfigError(f"split={split}: this data set has {'pairs of texts only in ' + ', '.join(there) if there else 'no pairs of texts'}")
    return pairs

"""The ordinary objectives, which several papers share; what is a paper's own stands in its folder."""

from .classification import Classification
from .language_modelling import CausalLanguageModel, LanguageModel
from .sequence_to_sequence import SequenceToSequence

__all__ = ["CausalLanguageModel", "Classification", "LanguageModel", "SequenceToSequence"]

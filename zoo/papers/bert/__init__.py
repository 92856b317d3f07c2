from .gap import gap_filling
from .model import Bert, bert_base, bert_large, bert_medium, bert_mini, bert_small, bert_tiny
from .objective import LeftToRight, MaskedLanguageModel, SentenceClassification, SentenceRegression, SpanPrediction, Tagging

__all__ = [
    "Bert",
    "LeftToRight",
    "MaskedLanguageModel",
    "SentenceClassification",
    "SentenceRegression",
    "SpanPrediction",
    "Tagging",
    "bert_base",
    "bert_large",
    "bert_medium",
    "bert_mini",
    "bert_small",
    "bert_tiny",
    "gap_filling",
]

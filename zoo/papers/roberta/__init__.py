from .model import Roberta, SentenceHead, roberta_base, roberta_large

__all__ = ["Roberta", "SentenceHead", "roberta_base", "roberta_large"]

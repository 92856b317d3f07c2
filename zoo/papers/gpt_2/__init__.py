from .model import GPT2, gpt2_large, gpt2_medium, gpt2_small, gpt2_xl

__all__ = ["GPT2", "gpt2_large", "gpt2_medium", "gpt2_small", "gpt2_xl"]

from .model import SwitchGate, SwitchLanguageModel, switch_decoder_base, switch_decoder_tiny
from .objective import RoutedLanguageModel

__all__ = ["RoutedLanguageModel", "SwitchGate", "SwitchLanguageModel", "switch_decoder_base", "switch_decoder_tiny"]

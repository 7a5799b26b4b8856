"""LoRAs and their relatives: read in every layout, merged into a model, written."""
from .changes import BOFT, OFT, Change, Difference, GLoRA, LoHa, LoKr, Replacement, Scaled
from .lora import Lora, LoraPart, merge_lora
from .read import read_lora
from .write import write_lora

__all__ = ["BOFT", "OFT", "Change", "Difference", "GLoRA", "LoHa", "LoKr", "Lora", "LoraPart", "Replacement", "Scaled",
           "merge_lora", "read_lora", "write_lora"]

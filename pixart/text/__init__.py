"""From a prompt to the text features that a PixArt transformer reads."""
from .cache import EmbeddingCache
from .cleaning import clean_caption
from .encoded import Encoded, load_embeddings, save_embeddings
from .t5 import T5Encoder, encoder_identity
from .tokens import PromptReport, PromptTokenizer, load_tokenizer

__all__ = ["EmbeddingCache", "Encoded", "PromptReport", "PromptTokenizer", "T5Encoder", "clean_caption",
           "encoder_identity", "load_embeddings", "load_tokenizer", "save_embeddings"]

"""The small T5-type text encoder of PixArt-mini, in a Hugging Face folder with its own word tokenizer."""
import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import CAPTION_WIDTH
from .catalogue import Catalogue, SceneWish, build_catalogue
from .grammar import caption, vocabulary
from .resume import ResumableTraining
from .scenes import ATTRIBUTES, labels, sample_scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

logger = logging.getLogger(__name__)

WIDTH = CAPTION_WIDTH          # channels of the features
MINI_TOKENS = 256              # longest caption; a sentence of the grammar has up to 21, a paragraph 254
LAYERS = 3
_MASK, _MASK_NUMBER = "<extra_id_0>", 3


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """One token a word, lower-cased, punctuation apart; `</s>` at the end, numbers of the special tokens as in T5."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", _MASK, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>",
                                                             special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   mask_token=_MASK, model_max_length=MINI_TOKENS, padding_side="right",
                                   model_input_names=["input_ids", "attention_mask"])


def build_encoder(words: int) -> "T5EncoderModel":
    """The encoder of T5 v1.1 (gated GELU, no bias, relative positions) with 3 layers of width 128, untrained."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(
        vocab_size=words, d_model=WIDTH, d_kv=32, d_ff=256, num_layers=LAYERS, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        tie_word_embeddings=False,     # type: ignore[call-arg]
        relative_attention_num_buckets=32, pad_token_id=0, eos_token_id=1))


class EncoderWithHeads(nn.Module):
    """The encoder with the heads it is trained by: hidden words, and the attributes of the caption.

    Each attribute is read from the tokens that the features themselves point at, so that a word has to know which of
    two things it belongs to.
    """

    def __init__(self, encoder: "T5EncoderModel", words: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.words = nn.Linear(WIDTH, words)
        self.where = nn.Linear(WIDTH, len(ATTRIBUTES))
        self.answers = nn.ModuleList(nn.Linear(WIDTH, len(known)) for known in ATTRIBUTES.values())

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """tokens, mask (B, L) -> logits of words (B, L, words), and logits of every attribute (B, answers)."""
        features = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = self.where(features).masked_fill(mask[..., None] == 0, -torch.inf).softmax(1)
        read = weights.transpose(1, 2) @ features                                     # (B, attributes, WIDTH)
        return self.words(features), [head(read[:, k]) for k, head in enumerate(self.answers)]


def train_text_encoder(folder: Path, steps: int = 1500, batch: int = 128, seed: int = 0, state: Path | None = None,
                       rate: float = 2e-3, device: str = "cpu", captions: int = 100_000) -> float:
    """Trains on captions of the training split and writes a folder that `AutoTokenizer` and `T5EncoderModel` open.

    Returns the share of attributes that its heads read rightly from captions of held-out scenes.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    words = tokenizer.get_vocab()
    sentences, paragraphs = (build_catalogue(wish, count, words).to(device) for wish, count in (
        (SceneWish(seed, two=0.5, unknown=0.125), captions),
        (SceneWish(seed, crowded=True, unknown=0.125), captions // 4)))
    model = EncoderWithHeads(build_encoder(len(tokenizer)), len(tokenizer)).to(device).train()
    progress = ResumableTraining("text encoder", model, rate, steps, state, seed)
    for step in progress:
        long = step % 4 == 3
        rows = torch.randint(len(paragraphs if long else sentences), (batch // 4 if long else batch,), device=device)
        progress.advance(_loss(model, paragraphs if long else sentences, rows))
    save_text_encoder(folder, tokenizer, model.encoder.cpu())
    read = _read(model.eval().cpu(), tokenizer, 1000)
    logger.info("text encoder: reads %.4f of the attributes of held-out captions", read)
    return read


def _loss(model: EncoderWithHeads, captions: Catalogue, rows: Tensor) -> Tensor:
    """Cross entropy of hidden words (an eighth of each caption) and of the attributes, read from the whole caption."""
    tokens, wanted = captions.tokens[rows].long(), captions.answers[rows].long()
    mask = (tokens > 0).long()
    hide = (torch.rand(tokens.shape, device=tokens.device) < 0.125) & (tokens > 3)
    guesses, answers = model(tokens.masked_fill(hide, _MASK_NUMBER), mask)[0], model(tokens, mask)[1]
    guess = F.cross_entropy(guesses.transpose(1, 2), tokens.masked_fill(~hide, -100))
    read = sum(F.cross_entropy(given, column, reduction="sum", ignore_index=-1)
               for given, column in zip(answers, wanted.T))
    return guess + read / (wanted >= 0).sum()


def tokenise(tokenizer: "PreTrainedTokenizerFast", texts: list[str], fixed: bool = False) -> tuple[Tensor, Tensor]:
    """Numbers and mask (B, L), int64, padded to the longest text or, if `fixed`, to `MINI_TOKENS`."""
    both = tokenizer(texts, padding="max_length" if fixed else "longest", truncation=True, max_length=MINI_TOKENS,
                     return_tensors="pt")
    return both.input_ids, both.attention_mask


@torch.no_grad()
def _read(model: EncoderWithHeads, tokenizer: "PreTrainedTokenizerFast", count: int) -> float:
    """Share of attributes that the heads read rightly from captions of held-out scenes, every fourth crowded."""
    right, asked = 0.0, 0.0
    for crowded in (False, True):
        scenes = [sample_scene(index, 99, "held-out", crowded)
                  for index in range(count // 4 if crowded else 3 * count // 4)]
        tokens, mask = tokenise(tokenizer, [caption(scene, random.Random(index)) for index, scene in enumerate(scenes)])
        choices = torch.stack([given.argmax(1) for given in model(tokens, mask)[1]], 1)
        wanted = torch.tensor([labels(scene) for scene in scenes])
        right += (choices == wanted).sum().item()
        asked += (wanted >= 0).sum().item()
    return right / asked


def save_text_encoder(folder: Path, tokenizer: "PreTrainedTokenizerFast", encoder: "T5EncoderModel") -> None:
    """Writes the Hugging Face folder beside its place, then puts it there."""
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    encoder.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    _name_portably(beside / "tokenizer_config.json")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


def _name_portably(path: Path) -> None:
    """transformers 5 writes a class name that transformers 4 does not know; both know this one."""
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def load_text_encoder(folder: Path) -> tuple["PreTrainedTokenizerFast", "T5EncoderModel"]:
    """Opens the folder without network, in fp32."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, T5EncoderModel.from_pretrained(folder, local_files_only=True).eval()


@torch.no_grad()
def text_features(tokenizer: "PreTrainedTokenizerFast", encoder: "T5EncoderModel", texts: list[str],
                  fixed: bool = False) -> tuple[Tensor, Tensor]:
    """Features (B, L, WIDTH) and mask (B, L) of captions; L as in `tokenise`."""
    tokens, mask = tokenise(tokenizer, texts, fixed)
    device = next(encoder.parameters()).device
    features = encoder(input_ids=tokens.to(device), attention_mask=mask.to(device)).last_hidden_state
    return features.cpu(), mask

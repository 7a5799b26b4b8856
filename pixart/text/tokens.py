"""From prompt to token ids, with a report of how many there are and which words did not fit."""
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import spiece
from .emphasis import WeightedText, whole_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

END_TOKEN = "</s>"
UNKNOWN_TOKEN = "<unk>"
LONGEST_WORD = 40
T5_IDS = {"<pad>": 0, END_TOKEN: 1, UNKNOWN_TOKEN: 2}
HOST_TOKENIZER = Path("comfy", "text_encoders", "t5_tokenizer")       # in the folder of a ComfyUI


@dataclass(frozen=True)
class PromptReport:
    """What became of one prompt on its way to the text encoder."""

    prompt: str                     # as the user wrote it
    text: str                       # as it was encoded: cleaned, or the prompt itself
    tokens: int                     # encoded, the end token included; never more than `limit`
    needed: int                     # that the whole text would take
    limit: int
    cut: str = ""                   # the end of `text` that was not encoded, from the first damaged word on
    notes: tuple[str, ...] = ()     # anything else the user should know

    @property
    def cut_words(self) -> list[str]:
        return self.cut.split()

    @property
    def summary(self) -> str:
        """`87 of 120 tokens`; when the prompt was too long also how many words were cut and the first of them."""
        used = f"{self.tokens} of {self.limit} tokens"
        if not self.cut:
            return used
        words = self.cut_words
        shown = " ".join(words[:8]) + (" ..." if len(words) > 8 else "")
        count = "1 word" if len(words) == 1 else f"{len(words)} words"
        return f"{used}, the prompt needs {self.needed}; {count} cut: {shown}"

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user has to be told: the summary where something was cut, and the notes."""
        return ((self.summary,) if self.cut else ()) + self.notes


class PromptTokenizer:
    """A T5 tokenizer that never pads, and cuts only where it is told to."""

    def __init__(self, tokenizer: "Tokenizer", source: Path) -> None:
        """`tokenizer`: a `tokenizers.Tokenizer`; `source`: the file it came from, for messages."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.source = source
        self._tokenizer = tokenizer
        end = tokenizer.token_to_id(END_TOKEN)
        if end is None:
            raise ValueError(f"no end token {END_TOKEN}, so this is not the tokenizer of a T5 model: {source}")
        self._end: int = end

    @property
    def of_t5(self) -> bool:
        """Whether the special tokens have the ids that every T5 gives them."""
        return {token: self._tokenizer.token_to_id(token) for token in T5_IDS} == T5_IDS

    @property
    def size(self) -> int:
        """Number of different ids."""
        return self._tokenizer.get_vocab_size()

    def count(self, text: str) -> int:
        """Tokens that the whole text takes, the end token included: 1 for an empty text."""
        return len(self._ids_and_starts(text)[0])

    def encode(self, prompt: str, limit: int, text: str | None = None,
               notes: tuple[str, ...] = ()) -> tuple[list[int], PromptReport]:
        """At most `limit` ids of `text` (of the prompt where it is None), the last always the end token."""
        ids, _, report = self.encode_parts(prompt, limit, [WeightedText(prompt if text is None else text)], notes=notes)
        return ids, report

    def encode_parts(self, prompt: str, limit: int, parts: Sequence[WeightedText], between: str = "",
                     notes: tuple[str, ...] = ()) -> tuple[list[int], list[float], PromptReport]:
        """As `encode`, and the weight of each token. Every part is tokenised by itself, as ComfyUI does.

        between: the separator of the parts in the text of the report.
        """
        text, ids, starts, weights = "", [], [], []
        for part in parts:
            own = whole_characters(part.text)
            text += between if text and own else ""
            found, places = self._ids_and_starts(own)
            notes += self._unknown(own, found[:limit], places)
            ids += found[:-1]
            starts += [len(text) + place for place in places[:-1]]
            weights += [part.weight] * (len(found) - 1)
            text += own
        needed, cut = len(ids) + 1, ""
        if needed > limit:
            cut = text[_word_start(text, starts[limit - 1]):].strip()
        ids, weights = ids[:limit - 1] + [self._end], weights[:limit - 1] + [1.0]
        return ids, weights, PromptReport(prompt, text, len(ids), needed, limit, cut, notes)

    def _unknown(self, text: str, ids: list[int], starts: list[int]) -> tuple[str, ...]:
        """A note on what the vocabulary cannot spell, such as emoji and Chinese."""
        unknown = self._tokenizer.token_to_id(UNKNOWN_TOKEN)
        parts = [text[starts[i]:starts[i + 1]].strip() for i, token in enumerate(ids[:-1]) if token == unknown]
        if not parts:
            return ()
        return (f"the text encoder has no tokens for: {' '.join(dict.fromkeys(parts))[:80]}",)

    def _ids_and_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Ids with the end token, and for each where in the text it starts."""
        encoding = self._tokenizer.encode(text)
        ids, starts = list(encoding.ids), [start for start, _ in encoding.offsets]
        if not ids or ids[-1] != self._end or encoding.offsets[-1] != (0, 0):   # no post-processor adds it
            return ids + [self._end], starts + [len(text)]
        return ids, starts[:-1] + [len(text)]


def _word_start(text: str, at: int) -> int:
    """Start of the word that `at` lies in; `at` itself on a blank, and in scripts without spaces."""
    start = at
    while 0 < start < len(text) and not text[start].isspace() and not text[start - 1].isspace():
        start -= 1
        if at - start > LONGEST_WORD:
            return at
    return start


def check_request(prompts: list[str], max_tokens: int) -> None:
    """Raises ValueError unless `prompts` is a list of strings, not empty, and `max_tokens` is a whole number >= 1."""
    if isinstance(prompts, str) or not isinstance(prompts, (list, tuple)) or not prompts:
        raise ValueError(f"prompts must be a list of at least one string, got {prompts!r}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {index} must be a string, got {type(prompt).__name__}: {prompt!r}")
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise ValueError(f"max_tokens must be a whole number of at least 1, got {max_tokens!r}; "
                         "PixArt-alpha and -delta use 120, Sigma 300")


def load_tokenizer(model_folder: Path | None, fallback: str | Path | None = None) -> PromptTokenizer:
    """The tokenizer in the folder of the model where it has one, or else the one in `fallback`.

    Looked for: tokenizer.json, then spiece.model, in `model_folder`, in its `tokenizer` folder and, as in a diffusers
    pipeline, in a `tokenizer` folder beside it; then in `fallback`, a folder or one of these files.
    Raises FileNotFoundError that says where to put one, ValueError for a file that is not a T5 tokenizer.
    """
    own = [model_folder, model_folder / "tokenizer", model_folder.parent / "tokenizer"] if model_folder else []
    for folder in own:
        found = _find(folder)
        if found:
            return _read(found)
    if fallback is not None:
        found = _find(Path(fallback))
        if found:
            return _read(found)
        raise FileNotFoundError(f"{fallback} holds neither tokenizer.json nor spiece.model")
    place = f"is in {model_folder}" if model_folder else "lies beside this single file of T5 weights"
    raise FileNotFoundError(f"no tokenizer {place}. Put spiece.model or tokenizer.json of T5 v1.1 there: python -m "
                            "pixart download t5-tokenizer --out FOLDER, or from comfy/text_encoders/t5_tokenizer of "
                            "ComfyUI")


def lone_tokenizer(file: Path) -> Path | None:
    """The tokenizer for a single file of T5 weights, which has none: one beside it, else that of the ComfyUI it is in.

    Tokenizers of other models beside it are skipped.
    """
    folder = file.absolute().parent
    places = [folder, *(parent / HOST_TOKENIZER for parent in folder.parents)]
    return next((found for place in places if (found := _find(place)) is not None and _read(found).of_t5), None)


def _find(place: Path) -> Path | None:
    if place.is_file():
        return place
    return next((place / name for name in ("tokenizer.json", "spiece.model") if (place / name).is_file()), None)


def _read(path: Path) -> PromptTokenizer:
    if path.suffix == ".model":
        tokenizer = spiece.t5_tokenizer(path)
    else:
        from tokenizers import Tokenizer
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:      # the Rust library raises plain Exception for every malformed file
            raise ValueError(f"{path} is not a tokenizer file or is damaged: {error}") from error
    logger.debug("tokenizer %s", path)
    return PromptTokenizer(tokenizer, path)

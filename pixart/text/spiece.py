"""SentencePiece unigram files (`spiece.model`) read without the sentencepiece or protobuf packages."""
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
LARGEST_SPIECE = 64 << 20               # bytes; T5's has 0.8 million
_EXTRA_IDS = 100                        # T5 adds <extra_id_0> .. <extra_id_99> after its pieces, highest first


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift >= 70:
            raise ValueError("a number of more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one protobuf message; lengths and fixed values come as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"protobuf wire type {kind}")
        if at + length > len(data):
            raise ValueError("ends in the middle of a field")
        yield number, data[at:at + length]
        at += length


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _piece(message: bytes) -> tuple[str, float]:
    fields = dict(_fields(message))                    # 1 text, 2 score (float32), 3 type
    score = struct.unpack("<f", _message(fields[2]))[0] if 2 in fields else 0.0
    return _message(fields[1]).decode("utf-8"), score


def read_pieces(path: Path) -> tuple[list[tuple[str, float]], bytes]:
    """([(piece, log probability)] in id order, compiled normalisation table) of a SentencePiece model file."""
    pieces: list[tuple[str, float]] = []
    table, kind = b"", 1
    try:
        if path.stat().st_size > LARGEST_SPIECE:
            raise ValueError(f"more than {LARGEST_SPIECE} bytes")
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                pieces.append(_piece(_message(value)))
            elif number == 2:                          # trainer: field 3 is the model type, 1 = unigram
                kind = int(dict(_fields(_message(value))).get(3, 1))
            elif number == 3:                          # normaliser: field 2 is its table
                table = _message(dict(_fields(_message(value))).get(2, b""))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{path} is not a SentencePiece model file or is damaged: {error}") from error
    if kind != 1 or not pieces:
        raise ValueError(f"{path} holds no unigram SentencePiece model, as T5 uses")
    return pieces, table


def t5_tokenizer(path: Path) -> "Tokenizer":
    """The fast T5 tokenizer for a `spiece.model`: same ids as the tokenizer.json made from it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces, table = read_pieces(path)
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(_EXTRA_IDS))]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    if not {"<unk>", "</s>"} <= ids.keys():
        raise ValueError(f"{path} has no <unk> and </s> pieces; a T5 tokenizer has both")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=ids["<unk>"], byte_fallback=False))
    steps = [normalizers.Precompiled(table)] if table else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip(left=False, right=True),
                                                 normalizers.Replace(Regex(" {2,}"), "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.add_special_tokens([t for t in special if t in ids] + [p for p, _ in pieces[-_EXTRA_IDS:]])
    return tokenizer

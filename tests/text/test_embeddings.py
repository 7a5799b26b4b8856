"""An unchanged prompt never runs T5 twice, in one process through the cache and over processes through a file."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixart.text import EmbeddingCache, Encoded, T5Encoder, encoder_identity, load_embeddings, save_embeddings

PROMPTS = ["a red cat on the house", "one two three"]


@pytest.fixture
def encoder(t5_folder: Path) -> T5Encoder:
    return T5Encoder(t5_folder, bits=16)


@pytest.fixture
def passes(encoder: T5Encoder) -> list[int]:
    """One entry for every pass through the T5."""
    counted: list[int] = []
    encoder.model.register_forward_hook(lambda *_: counted.append(1))
    return counted


def same(a: Encoded, b: Encoded) -> bool:
    return torch.equal(a.context, b.context) and torch.equal(a.mask, b.mask) and a.reports == b.reports


def test_the_same_prompts_run_the_encoder_once(encoder: T5Encoder, passes: list[int]) -> None:
    cache = EmbeddingCache()
    first, second = cache.encode(encoder, PROMPTS, 120), cache.encode(encoder, PROMPTS, 120)
    assert len(passes) == 2 and (cache.hits, cache.misses) == (2, 2)
    assert same(first, second) and same(first, encoder.encode(PROMPTS, 120))


def test_only_new_prompts_run_the_encoder(encoder: T5Encoder, passes: list[int]) -> None:
    cache = EmbeddingCache()
    cache.encode(encoder, PROMPTS, 120)
    mixed = cache.encode(encoder, ["a cat", PROMPTS[0], "a cat", PROMPTS[1]], 120)
    assert len(passes) == 3
    assert same(mixed, encoder.encode(["a cat", PROMPTS[0], "a cat", PROMPTS[1]], 120))


def test_limit_and_cleaning_are_part_of_the_question(encoder: T5Encoder, passes: list[int]) -> None:
    cache = EmbeddingCache()
    for limit, clean in ((120, False), (3, False), (120, True), (120, False), (3, False)):
        assert same(cache.encode(encoder, PROMPTS[:1], limit, clean), encoder.encode(PROMPTS[:1], limit, clean))
    assert cache.misses == 3 and cache.hits == 2


def test_what_cleaning_took_away_is_said_of_the_prompt_it_was_taken_from(encoder: T5Encoder) -> None:
    cache = EmbeddingCache()
    for prompt in ("", "\u732b", "a red cat", "A  Red Cat \u732b", "a red cat \u732b", "\u732b"):
        kept, fresh = cache.encode(encoder, [prompt], 120, clean=True), encoder.encode([prompt], 120, clean=True)
        assert kept.reports == fresh.reports and same(kept, fresh), prompt


def test_an_entry_outlives_its_encoder(encoder: T5Encoder, t5_folder: Path) -> None:
    cache = EmbeddingCache()
    expected = cache.encode(encoder, PROMPTS, 120)
    encoder.close()
    found = cache.find(encoder_identity(t5_folder), 16, PROMPTS, 120)
    assert found is not None and same(found, expected)
    assert cache.find(encoder_identity(t5_folder), 8, PROMPTS, 120) is None
    assert cache.find(encoder_identity(t5_folder), 16, [*PROMPTS, "new"], 120) is None


def test_the_cache_forgets_what_was_used_longest_ago(encoder: T5Encoder, passes: list[int]) -> None:
    cache = EmbeddingCache(entries=2)
    for prompt in ("one", "two", "one", "three", "one"):
        cache.encode(encoder, [prompt], 120)
    assert len(cache) == 2 and len(passes) == 3
    cache.encode(encoder, ["two"], 120)
    assert len(passes) == 4


def test_more_prompts_at_once_than_the_cache_holds_still_work(encoder: T5Encoder) -> None:
    cache = EmbeddingCache(entries=1)
    assert same(cache.encode(encoder, PROMPTS, 120), encoder.encode(PROMPTS, 120)) and len(cache) == 1
    with pytest.raises(ValueError, match="at least 1"):
        EmbeddingCache(0)


def test_changing_a_result_does_not_change_the_cache(encoder: T5Encoder) -> None:
    cache = EmbeddingCache()
    cache.encode(encoder, PROMPTS[:1], 120).context.zero_()
    assert cache.encode(encoder, PROMPTS[:1], 120).context.any()


def test_saved_embeddings_come_back_with_their_prompts(encoder: T5Encoder, tmp_path: Path) -> None:
    encoded = encoder.encode([*PROMPTS, "猫 " + "a " * 20], 6)
    save_embeddings(tmp_path / "x.safetensors", encoded)
    save_embeddings(tmp_path / "x.safetensors", encoded)
    loaded = load_embeddings(tmp_path / "x.safetensors")
    assert same(loaded, encoded) and loaded.encoder == encoded.encoder and "16-bit" in loaded.encoder
    assert loaded.reports[2].cut_words and loaded.reports[2].notes
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_interrupted_save_leaves_the_old_file(encoder: T5Encoder, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = tmp_path / "x.safetensors"
    save_embeddings(path, encoder.encode(PROMPTS, 120))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_embeddings(path, encoder.encode(["a cat"], 120))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_wrong_embedding_files_are_refused(encoder: T5Encoder, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_embeddings(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        save_embeddings(tmp_path / "no" / "x.safetensors", encoder.encode(["a"], 120))
    save_embeddings(path, encoder.encode(PROMPTS, 120))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="a truncated safetensors file"):
        load_embeddings(path)
    save_file({"context": torch.zeros(1, 2, 3)}, path)
    with pytest.raises(ValueError, match="holds no saved prompt"):
        load_embeddings(path)
    metadata = {"format": "pixart-embeddings-1", "reports": "[]", "encoder": ""}
    save_file({"context": torch.zeros(1, 2, 3), "mask": torch.ones(1, 5, dtype=torch.bool)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"context \(1, 2, 3\), mask \(1, 5\)"):
        load_embeddings(path)

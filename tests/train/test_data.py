"""Prepared folders: batches follow from the generator, many shards read as one, wrong folders are named."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixart.prepare.shards import Shard, shard_path, write_shard
from pixart.train.data import PreparedFolder

WIDTH, TOKENS = 8, 6
SPACE = {"latent_space": "sd", "caption_tokens": str(TOKENS), "edges": "none"}


def examples(count: int, sides: tuple[int, int], seed: int = 0, tokens: int = TOKENS,
             names: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).half()

    mask = torch.zeros(count, tokens, dtype=torch.uint8)
    mask[:, :3] = 1
    result = {"latents": normal(count, 4, *sides), "features": normal(count, tokens, WIDTH) * mask[..., None],
              "mask": mask, "size": torch.arange(count)[:, None] + 8.0 * torch.tensor(sides),
              "aspect": torch.full((count,), sides[0] / sides[1])}
    return {**result, **{name: normal(count, 4, *sides).abs() for name in names}}


def write_null(folder: Path, width: int = WIDTH) -> None:
    save_file({"features": torch.ones(1, width), "mask": torch.ones(1, dtype=torch.uint8)}, folder / "null.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """16 + 8 + 4 images in a square bucket of three shards, 5 in another."""
    for number, count in enumerate((16, 8, 4)):
        write_shard(shard_path(tmp_path, (8, 8), number), examples(count, (8, 8), number), SPACE)
    write_shard(shard_path(tmp_path, (6, 10), 0), examples(5, (6, 10), 9), SPACE)
    write_null(tmp_path)
    return tmp_path


def test_a_batch_is_as_wide_as_its_captions(tmp_path):
    """In multiples of 8 and never below the null caption, whatever longer ones the folder or its header know."""
    space = {**SPACE, "caption_tokens": "256"}
    short, long = examples(3, (8, 8), 1, tokens=20), examples(3, (6, 10), 2, tokens=30)
    long["mask"][1] = 1
    long["features"] = torch.randn(3, 30, WIDTH).half() * long["mask"][..., None]
    write_shard(shard_path(tmp_path, (8, 8), 0), short, space)
    write_shard(shard_path(tmp_path, (6, 10), 0), long, space)
    write_null(tmp_path)
    data, widths = PreparedFolder(tmp_path), {}
    for seed in range(12):
        batch = data.batch(torch.Generator().manual_seed(seed), 4)
        kind, longest = batch.latents.shape[2], int(batch.mask.sum(1).max())
        widths.setdefault((kind, longest), set()).add(batch.context.shape[1])
        assert batch.context.shape[:2] == batch.mask.shape and not batch.context[~batch.mask].any()
        assert data.without_caption(batch).mask.sum() == 4
    assert widths == {(8, 3): {8}, (6, 30): {32}} | ({(6, 3): {8}} if (6, 3) in widths else {})
    save_file({"features": torch.ones(11, WIDTH), "mask": torch.ones(11, dtype=torch.uint8)},
              tmp_path / "null.safetensors")
    assert PreparedFolder(tmp_path).batch(torch.Generator().manual_seed(0), 1).context.shape[1] >= 16


def test_a_batch_follows_from_the_generator_as_it_always_did(folder):
    """The draws of a folder with one file a bucket: bucket by its count, then rows; nothing else."""
    data = PreparedFolder(folder)
    whole = {8: [load_file(shard_path(folder, (8, 8), n)) for n in range(3)],
             6: [load_file(shard_path(folder, (6, 10), 0))]}
    whole = {side: {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
             for side, parts in whole.items()}
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        bucket = whole[[6, 8][int(torch.multinomial(torch.tensor([5.0, 28.0]), 1, generator=generator))]]
        rows = torch.randint(len(bucket["latents"]), (7,), generator=generator)
        used = torch.Generator().manual_seed(seed)
        batch = data.batch(used, 7)
        for name, value in (("latents", batch.latents), ("features", batch.context), ("mask", batch.mask),
                            ("size", batch.size), ("aspect", batch.aspect)):
            assert torch.equal(value, bucket[name][rows].to(value.dtype)), name
        assert batch.hint is None and torch.equal(used.get_state(), generator.get_state())


def test_shards_are_as_one_file(folder, tmp_path_factory):
    one = tmp_path_factory.mktemp("one")
    parts = [load_file(shard_path(folder, (8, 8), n)) for n in range(3)]
    save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, one / "bucket-8x8.safetensors")
    save_file(load_file(shard_path(folder, (6, 10), 0)), one / "bucket-6x10.safetensors")
    write_null(one)
    for seed in range(5):
        ours, theirs = (PreparedFolder(place).batch(torch.Generator().manual_seed(seed), 9) for place in (folder, one))
        assert all(torch.equal(value, getattr(theirs, name)) for name, value in vars(ours).items() if value is not None)
    assert len(PreparedFolder(folder)) == len(PreparedFolder(one)) == 33


def test_a_draw_is_mean_plus_spread_times_noise_of_the_same_generator(tmp_path):
    names = ("spread", "hints", "hints_spread")
    write_shard(shard_path(tmp_path, (8, 8), 0), examples(12, (8, 8), names=names), {**SPACE, "edges": "canny"})
    write_null(tmp_path)
    data = PreparedFolder(tmp_path, need_hints=True)
    batch = data.batch(torch.Generator().manual_seed(4), 5)
    stored, generator = load_file(shard_path(tmp_path, (8, 8), 0)), torch.Generator().manual_seed(4)
    torch.multinomial(torch.tensor([12.0]), 1, generator=generator)
    rows = torch.randint(12, (5,), generator=generator)
    for value, mean, spread in ((batch.latents, "latents", "spread"), (batch.hint, "hints", "hints_spread")):
        noise = torch.randn(value.shape, generator=generator)
        assert torch.equal(value, stored[mean][rows].float() + stored[spread][rows].float() * noise)
    again = data.batch(torch.Generator().manual_seed(4), 5)
    assert torch.equal(batch.latents, again.latents) and torch.equal(batch.hint, again.hint)
    assert not torch.equal(batch.latents, data.batch(torch.Generator().manual_seed(5), 5).latents)
    assert data.edges == "canny" and data.latent_space == "sd"


def test_captions_of_shards_kept_short_are_padded_to_the_length_of_the_model(tmp_path):
    for number, tokens in enumerate((3, 5)):
        write_shard(shard_path(tmp_path, (8, 8), number), examples(6, (8, 8), number, tokens), SPACE)
    write_null(tmp_path)
    data = PreparedFolder(tmp_path)
    batch = data.batch(torch.Generator().manual_seed(0), 30)
    assert batch.context.shape == (30, TOKENS, WIDTH) and batch.mask.shape == (30, TOKENS)
    assert not batch.context[:, 3:].any() and batch.mask.sum(1).tolist() == [3] * 30
    assert torch.equal(data.without_caption(batch).mask.sum(1), torch.ones(30))


def test_buckets_come_up_as_often_as_they_hold_images(folder):
    data, generator = PreparedFolder(folder), torch.Generator().manual_seed(0)
    square = sum(data.batch(generator, 1).latents.shape[-1] == 8 for _ in range(400)) / 400
    assert abs(square - 28 / 33) < 3 * (28 / 33 * 5 / 33 / 400) ** 0.5


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_opening_and_reading_takes_far_less_memory_than_the_data(tmp_path):
    """64 MB of shards; the memory of the process itself (without mapped files) grows by less than half of it."""
    for number in range(4):
        big = {**examples(64, (8, 8), number), "features": torch.zeros(64, TOKENS, 21845, dtype=torch.float16)}
        write_shard(shard_path(tmp_path, (8, 8), number), big, SPACE)
    write_null(tmp_path, 21845)
    program = """
import re, sys, torch
from pixart.train.data import PreparedFolder
def own(): return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
generator = torch.Generator().manual_seed(0); torch.randint(3, (2,), generator=generator).unique()
before = own()
data = PreparedFolder(sys.argv[1])
for _ in range(8): batch = data.batch(generator, 4)
print(own() - before)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).resolve().parents[2])
    assert int(done.stdout) < 32 * 1024


# -- folders that cannot be used ---------------------------------------------------------------------------------------

def test_a_folder_without_edge_maps_is_refused_where_they_are_needed(folder):
    with pytest.raises(ValueError, match="bucket-6x10-00000.safetensors.*--edges"):
        PreparedFolder(folder, need_hints=True)


def test_a_shard_that_was_cut_off_is_named(folder):
    path = shard_path(folder, (8, 8), 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="bucket-8x8-00001.safetensors is damaged or cut off"):
        PreparedFolder(folder)


def test_a_shard_that_lacks_a_tensor_is_named(folder):
    path = shard_path(folder, (8, 8), 2)
    tensors = load_file(path)
    del tensors["mask"]
    write_shard(path, tensors, SPACE)
    with pytest.raises(ValueError, match="bucket-8x8-00002.safetensors lacks mask"):
        PreparedFolder(folder)


@pytest.mark.parametrize("change, what", [
    ({"latent_space": "sdxl"}, "latent space is sdxl in one and sd in the other"),
    ({"edges": "hed"}, "edge maps is hed in one and none"),
])
def test_shards_of_different_models_are_refused(folder, change, what):
    write_shard(shard_path(folder, (8, 8), 3), examples(2, (8, 8)), {**SPACE, **change})
    with pytest.raises(ValueError, match=f"bucket-8x8-00003.safetensors and .*{what}"):
        PreparedFolder(folder)


def test_shards_with_other_tensors_or_widths_are_refused(folder):
    path = shard_path(folder, (8, 8), 3)
    write_shard(path, examples(2, (8, 8), names=("spread",)), SPACE)
    with pytest.raises(ValueError, match="tensors is .*spread"):
        PreparedFolder(folder)
    write_shard(path, {**examples(2, (8, 8)), "features": torch.zeros(2, TOKENS, WIDTH + 1)}, SPACE)
    with pytest.raises(ValueError, match="text feature width is 9 in one and 8 in the other"):
        PreparedFolder(folder)
    path.unlink()
    write_null(folder, WIDTH + 1)
    with pytest.raises(ValueError, match="null.safetensors has features of width 9"):
        PreparedFolder(folder)


def test_rows_and_sides_must_agree(folder):
    path = shard_path(folder, (8, 8), 3)
    write_shard(path, {**examples(3, (8, 8)), "aspect": torch.ones(2)}, SPACE)
    with pytest.raises(ValueError, match=r"00003.safetensors: aspect has shape \(2,\), expected \(3,\)"):
        PreparedFolder(folder)
    write_shard(path, examples(3, (8, 10)), SPACE)
    with pytest.raises(ValueError, match=r"latents has shape \(3, 4, 8, 10\), expected \(3, 4, 8, 8\)"):
        PreparedFolder(folder)


def test_another_format_is_refused(folder):
    path = shard_path(folder, (8, 8), 3)
    save_file(examples(2, (8, 8)), path, metadata={"format": "pixart-prepared-9"})
    with pytest.raises(ValueError, match="pixart-prepared-9.*expected 'pixart-prepared-1'"):
        PreparedFolder(folder)


def test_a_shard_remembers_its_sources(tmp_path):
    write_shard(shard_path(tmp_path, (8, 8), 7), examples(2, (8, 8)), SPACE, ["a/b.png", "ü\n.png"])
    assert Shard(shard_path(tmp_path, (8, 8), 7)).keys == ["a/b.png", "ü\n.png"]


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m pixart prepare"):
        PreparedFolder(tmp_path)
    write_shard(shard_path(tmp_path, (8, 8), 0), examples(0, (8, 8)), SPACE)
    write_null(tmp_path)
    with pytest.raises(ValueError, match="are empty"):
        PreparedFolder(tmp_path)

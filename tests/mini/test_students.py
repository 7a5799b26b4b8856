"""The LCM student of PixArt-mini: trained as a LoRA, written as a checkpoint of its own."""
from pathlib import Path

import torch
from safetensors import safe_open

from pixart.checkpoint import load
from pixart.mini import SHIPPED
from pixart.mini.students import PAIRS_PER_FILE, save_merged, write_captions
from pixart.prepare.shards import Shard, shard_paths
from pixart.sampling.preset import preset_from_header
from pixart.train.data import Batch
from pixart.train.draws import StepGenerator
from pixart.train.lora import adapters, add_lora


class Captions:
    """Data without end whose captions say which step of which seed they are of."""

    null_context, null_mask = torch.zeros(1, 8), torch.ones(1, dtype=torch.bool)
    device, caption_tokens = torch.device("cpu"), 6

    def batch(self, generator: StepGenerator, count: int) -> Batch:
        context = torch.full((count, 6, 8), float(generator.initial_seed() % 1000))
        return Batch(torch.zeros(count, 0, 4, 6), context, torch.ones(count, 6, dtype=torch.bool),
                     torch.full((count, 2), 32.0), torch.ones(count))


def test_captions_for_pairs_are_others_in_every_file_and_no_more_than_asked_for(tmp_path: Path) -> None:
    write_captions(tmp_path / "few", Captions(), 5, 0)      # type: ignore[arg-type]
    assert [len(Shard(path)) for path in shard_paths(tmp_path / "few")] == [5]
    write_captions(tmp_path / "many", Captions(), 2 * PAIRS_PER_FILE + 1, 0)      # type: ignore[arg-type]
    shards = [Shard(path) for path in shard_paths(tmp_path / "many")]
    assert [len(shard) for shard in shards] == [PAIRS_PER_FILE] * 3
    assert len({float(shard.tensors["features"][0, 0, 0]) for shard in shards}) == 3


def test_the_file_computes_what_the_network_with_its_adapters_does(tmp_path: Path) -> None:
    network = add_lora(load(SHIPPED.teacher, dtype=torch.float32), rank=16, alpha=16.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, layer in adapters(network):
            up = layer.lora_B["default"].weight
            up.copy_(0.02 * torch.randn(up.shape, generator=generator))
    file = save_merged(load(SHIPPED.teacher, dtype=torch.float32), network, tmp_path / "student.safetensors")
    latent, context = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 256, 128)))
    conditions = {"context": context, "mask": torch.ones(2, 256, dtype=torch.bool), "size": torch.full((2, 2), 64.0),
                  "aspect": torch.ones(2)}
    t = torch.tensor([999.0, 259.0])
    with torch.no_grad():
        want, got, base = (model(latent, t, **conditions) for model in (
            network, load(file, dtype=torch.float32), load(SHIPPED.teacher, dtype=torch.float32)))
    assert (got - want).abs().max() < 0.01 * (base - want).abs().max(), "16-bit weights, no more"
    with safe_open(file, "pt") as opened:
        assert preset_from_header(opened.metadata(), file).sampler == "lcm"

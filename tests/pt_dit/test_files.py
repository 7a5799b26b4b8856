"""Files of PT-DiT: the published names and shapes, our own header, and what is no such file."""
import json
from dataclasses import asdict, replace

import pytest
import torch
from pt_dit.tiny_pt_dit import PUBLISHED, TINY, given, model, published_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixart.checkpoint import CheckpointError, load, save_checkpoint
from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.pt_dit.config import PTDiTConfig
from pixart.pt_dit.layout import published_pt_dit_shapes
from pixart.pt_dit.load import PT_DIT_KEY, load_pt_dit, open_pt_dit, pt_dit_config_tensor, save_pt_dit


def written(tmp_path, changes: dict | None = None):
    """A file of ours, its header changed; None takes an entry away."""
    path = save_pt_dit(tmp_path / "own.safetensors", model())
    if changes is not None:
        about = {"version": 1, **asdict(TINY), **changes}
        about = {name: value for name, value in about.items() if value is not None or name == "kv_compression"}
        save_file(load_file(path), path, {PT_DIT_KEY: json.dumps(about)})
    return path


def test_published_names_and_shapes():
    """Those that the published code gives its 1 B model."""
    shapes, block = published_pt_dit_shapes(PTDiTConfig()), "transformer_blocks.27."
    for name, shape in {
        "pos_embed.proj.weight": (1152, 4, 2, 2), "adaln_single.emb.timestep_embedder.linear_1.weight": (1152, 256),
        "adaln_single.linear.bias": (6912,), "caption_projection.linear_1.weight": (1152, 4096),
        "scale_shift_table": (2, 1152), "proj_out.weight": (32, 1152), f"{block}scale_shift_table": (6, 1152),
        f"{block}proxy_scale_shift_table": (3, 1152), f"{block}proxy_attn1.to_q.bias": (1152,),
        f"{block}pvisual_attn2.to_k.weight": (1152, 1152), f"{block}pvisual_attn2.to_out.0.weight": (1152, 1152),
        f"{block}attn1.to_v.weight": (1152, 1152), f"{block}attn2.to_q.weight": (1152, 1152),
        f"{block}attn3.to_out.0.bias": (1152,), f"{block}linear_1_visual.weight": (1152, 1152),
        f"{block}linear_2.bias": (1152,), f"{block}ff.net.0.proj.weight": (4608, 1152),
        f"{block}ff.net.2.weight": (1152, 4608)}.items():
        assert shapes[name] == shape
    assert len(shapes) == 28 * (5 * 8 + 2 * 2 + 2 * 2 + 2) + 2 + 4 + 2 + 4 + 1 + 2
    assert 1.1e9 < sum(torch.Size(shape).numel() for shape in shapes.values()) < 1.2e9


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_file_is_recognised(tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in published_state(PUBLISHED).items()}
    state[f"{prefix}pos_embed.pos_embed"] = torch.zeros(1, 1, 256, 32)
    torch.save({"state_dict": state}, tmp_path / "t2i.pt")
    with pytest.raises(CheckpointError, match="attention heads"):          # widths of heads of 72 alone are known
        open_pt_dit(tmp_path / "t2i.pt")
    assert open_pt_dit(tmp_path / "t2i.pt", PUBLISHED).description.endswith("fp32, published layout")
    wide = replace(PUBLISHED, hidden=144, heads=2, depth=1)
    torch.save(published_state(wide), tmp_path / "wide.pt")
    found = open_pt_dit(tmp_path / "wide.pt").config
    assert found == PTDiTConfig(depth=1, hidden=144, heads=2, caption_width=12, autoencoder="open-sora-plan-1.2")


def test_a_file_of_ours_comes_back_to_the_bit(tmp_path):
    path, network = written(tmp_path), model()
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[PT_DIT_KEY])["version"] == 1
    again = load_pt_dit(path)
    assert again.config == TINY and torch.equal(again(**given()), network(**given()))
    half = load_pt_dit(path, dtype=torch.bfloat16)
    assert half.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert half.blocks[0].shifted_scale_shift_table.weight.dtype == torch.float32


def test_a_hosts_file_says_it_in_a_tensor(tmp_path):
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in load_file(written(tmp_path)).items()}
    state[f"model.diffusion_model.{PT_DIT_KEY}"] = pt_dit_config_tensor(TINY)
    save_file(state, tmp_path / "host.safetensors")
    assert torch.equal(load_pt_dit(tmp_path / "host.safetensors")(**given()), model()(**given()))


@pytest.mark.parametrize("changes, told", [
    ({"version": 2}, "version 2, newer than 1"), ({"window": None}, "does not say window"),
    ({"window": "8"}, "window is '8'"), ({"windows": 3}, "windows in pixart_pt_dit of its header is not known"),
    ({"proxy": 3}, "do not divide into proxies of 3"), ({"depth": 3}, "tensors are missing"),
    ({"hidden": 48, "heads": 4}, "have another shape")])
def test_a_header_that_cannot_be_meant(tmp_path, changes, told):
    with pytest.raises(CheckpointError, match=told):
        load_pt_dit(written(tmp_path, changes))


def test_what_is_no_pt_dit(tmp_path):
    plain = PixArtConfig(depth=1, hidden=32, heads=4, caption_width=12, micro_conditioning=False)
    save_checkpoint(tmp_path / "pixart.safetensors", PixArtTransformer(plain))
    with pytest.raises(CheckpointError, match="without proxy attention"):
        load_pt_dit(tmp_path / "pixart.safetensors")
    save_file(load_file(written(tmp_path)), tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="does not say how large its windows are"):
        load_pt_dit(tmp_path / "bare.safetensors")
    with pytest.raises(FileNotFoundError):
        load_pt_dit(tmp_path / "none.pt")
    state = published_state(PUBLISHED)
    del state["transformer_blocks.1.linear_2.weight"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="1 tensors are missing, the first is transformer_blocks.1.linear_2"):
        open_pt_dit(tmp_path / "part.pt", PUBLISHED)
    state = published_state(PUBLISHED)
    state["proj_out.bias"][3] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match="not finite"):
        load_pt_dit(tmp_path / "nan.pt", config=PUBLISHED)


@pytest.mark.parametrize("own", [True, False])
def test_the_loader_of_pixart_names_the_right_one(tmp_path, own):
    path = written(tmp_path)
    if not own:
        path = tmp_path / "t2i.pt"
        torch.save(published_state(PUBLISHED), path)
    with pytest.raises(CheckpointError, match="it looks like PT-DiT, a network of its own.*pixart.pt_dit.load_pt_dit"):
        load(path)

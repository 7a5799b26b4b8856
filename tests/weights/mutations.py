"""Damaged files of every kind, made from small right ones by seeded mutations."""
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixart.accelerate import BranchSchedule, write_ecad
from pixart.checkpoint import save_checkpoint, save_control, to_diffusers
from pixart.checkpoint.feedback import save_feedback
from pixart.checkpoint.save_diffusers import save_diffusers
from pixart.config import PixArtConfig
from pixart.model.controlnet import PixArtControlNet
from pixart.model.feedback import Feedback
from pixart.model.transformer import PixArtTransformer
from pixart.quantize.convert import convert
from pixart.quantize.formats import mixed
from pixart.quantize.fp4 import RANK

CONFIG = PixArtConfig(depth=2, hidden=24, heads=2, caption_width=16, caption_tokens=12, base_size=4, position_scale=2.0)
NASTY: list[Any] = [None, True, False, 0, -1, 1, 2, 2.5, 10 ** 9, 10 ** 400, -10 ** 30, float("nan"), float("inf"), "",
                    "x", "../../etc/passwd", "\x00", "F32", "I8", "F4", [], [0], [1, 2, 3], [[]], {}, {"a": 1}, [None],
                    "9" * 5000, "\u00e9\ud800", 2 ** 63, 2 ** 64, [2 ** 40, 2 ** 40], [0, 2 ** 62]]


def random_model(config: PixArtConfig = CONFIG) -> PixArtTransformer:
    torch.manual_seed(0)
    return PixArtTransformer(config).eval().requires_grad_(False)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name.replace("table.weight", "table"): tensor.detach() for name, tensor in model.state_dict().items()}


# --- right files: each writes into an empty folder and returns what is to be opened ----------------------------------

def own_file(folder: Path) -> Path:
    return save_checkpoint(folder / "model.safetensors", random_model())


def zipped(folder: Path) -> Path:
    torch.save({"state_dict": state(random_model()), "epoch": 3, "optimizer": {"state": {}}}, folder / "model.pth")
    return folder / "model.pth"


def stream(folder: Path) -> Path:
    torch.save(state(random_model()), folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def diffusers(folder: Path) -> Path:
    return save_diffusers(folder / "transformer", random_model())


def sharded(folder: Path) -> Path:
    tensors = {name: tensor.contiguous() for name, tensor in to_diffusers(state(random_model())).items()}
    names, places = sorted(tensors), {}
    for number in (1, 2):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        part = {name: tensors[name] for name in names[number - 1::2]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"_class_name": "PixArtTransformer2DModel", "num_attention_heads": 2,
                                                    "sample_size": 8, "interpolation_scale": 2}))
    return folder


def control(folder: Path) -> Path:
    torch.manual_seed(1)
    return save_control(folder / "control.safetensors", PixArtControlNet(CONFIG, 1))


def peft_lora(folder: Path) -> Path:
    from checkpoint.adapters_at_hand import written
    parameters = dict(random_model().named_parameters())
    names = ("x_embedder.proj", "blocks.0.attn.qkv", "blocks.1.mlp.fc1")
    modules = {name: parameters[f"{name}.weight"] for name in names}
    save_file(written("LoRA of peft", "peft", modules), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({
        "r": 2, "lora_alpha": 4, "use_rslora": False, "alpha_pattern": {"attn1.to_q": 3}, "peft_type": "LORA"}))
    return folder


def other_lora(adapter: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from checkpoint.adapters_at_hand import written
        parameters = dict(random_model().named_parameters())
        modules = {name: parameters[f"{name}.weight"] for name in ("x_embedder.proj", "blocks.0.attn.qkv")}
        save_file(written(adapter, "kohya", modules), folder / "lora.safetensors", {"ss_network_alpha": "4"})
        return folder / "lora.safetensors"
    return write


def t5(folder: Path) -> Path:
    """Of two layers, in a Hugging Face folder."""
    torch.manual_seed(2)
    width, block = 32, "encoder.block.{}.layer.{}.{}.weight"
    shapes = {"shared.weight": (40, width), "encoder.final_layer_norm.weight": (width,),
              block.format(0, 0, "SelfAttention.relative_attention_bias"): (8, 4)}
    for index in range(2):
        shapes |= {block.format(index, 0, f"SelfAttention.{leaf}"): (width, width) for leaf in "qkvo"}
        shapes |= {block.format(index, 1, f"DenseReluDense.{leaf}"): (width, width) for leaf in ("wi_0", "wi_1", "wo")}
        shapes |= {block.format(index, layer, "layer_norm"): (width,) for layer in (0, 1)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": width, "d_kv": 8,
                                                    "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu"}))
    return folder


QUANTIZED_CONFIG = replace(CONFIG, hidden=96, heads=4)         # widths that every format but convrot can have


def quantized(target: str) -> Callable[[Path], Path]:
    """As `python -m pixart quantize` writes it."""
    def write(folder: Path) -> Path:
        plain = save_checkpoint(folder / "plain.safetensors", random_model(QUANTIZED_CONFIG))
        convert(plain, target, folder / "model.safetensors")
        plain.unlink()
        return folder / "model.safetensors"
    return write


def low_rank(folder: Path) -> Path:
    """fp4 with a branch of low rank, as FP4DiT's files have it."""
    plain = save_checkpoint(folder / "plain.safetensors", random_model(QUANTIZED_CONFIG))
    convert(plain, "fp4", folder / "model.safetensors",
            settings=lambda layer, config: {**mixed(layer, config), RANK: 4})
    plain.unlink()
    return folder / "model.safetensors"


def feedback(folder: Path) -> Path:
    torch.manual_seed(3)
    return save_feedback(folder / "feedback.safetensors", Feedback(CONFIG, 0, 1, 20))


def schedule(folder: Path) -> Path:
    bits = torch.rand(5, 3, 3, generator=torch.Generator().manual_seed(4)) < 0.5
    return write_ecad(folder / "schedule.json", BranchSchedule.of("damaged", bits), gate=3, macs=7)


QUANTIZED_KINDS = {f"quantised {target}": quantized(target) for target in (
    "fp4", "nvfp4", "mxfp8", "int8_tensorwise", "float8_e4m3fn", "float8_e5m2", "asym_w4a8_int8")}
QUANTIZED_KINDS["low rank"] = low_rank
NEWER: dict[str, Callable[[Path], Path]] = {**QUANTIZED_KINDS, "feedback": feedback, "schedule": schedule}
TRANSFORMERS = {"own file": own_file, "zip": zipped, "stream": stream, "diffusers folder": diffusers, "shards": sharded}
LORAS = {"peft": peft_lora, **{name: other_lora(name) for name in ("DoRA", "LoHa", "LoKr", "GLoRA", "OFT", "BOFT")}}
KINDS: dict[str, Callable[[Path], Path]] = {**TRANSFORMERS, "control": control, **LORAS, "t5": t5, **NEWER}


# --- mutations: each changes one file in place ------------------------------------------------------------------------

def mutate(folder: Path, chance: random.Random) -> str:
    """Damage one file below a folder, one to three times; returns what was done, for reports."""
    file = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        possible = [_bytes, _cut]
        if file.suffix == ".json":
            possible += [_json_file] * 4
        elif file.suffix == ".safetensors":
            possible += [_header] * 4 + [_tensors] * 4 + [_mark] * 2
        elif zipfile.is_zipfile(file):
            possible += [_record] * 4 + [_torch_content] * 4
        else:
            possible += [_torch_content] * 2
        change = chance.choice(possible)
        try:
            done.append(f"{change.__name__}: {change(file, chance)}")
        except Exception as error:              # an earlier mutation left nothing that this one can work on
            done.append(f"{change.__name__} not possible ({type(error).__name__})")
    return f"{file.name}: {'; '.join(done)}"


def _bytes(file: Path, chance: random.Random) -> str:
    content = bytearray(file.read_bytes())
    count, area = chance.randint(1, 20), min(len(content), chance.choice((16, 300, 4000, 1 << 30)))
    start = chance.choice((0, max(len(content) - area, 0)))
    for _ in range(count):
        content[start + chance.randrange(area)] = chance.choice((0, 255, chance.randrange(256)))
    file.write_bytes(content)
    return f"{count} bytes of {area} from {start}"


def _cut(file: Path, chance: random.Random) -> str:
    content = file.read_bytes()
    at = chance.randrange(len(content) + 1)
    how = chance.choice(("shorter", "hole", "doubled", "longer"))
    changed = {"shorter": content[:at], "hole": content[:at] + content[at + chance.randint(1, 64):],
               "doubled": content[:at] + content[max(0, at - 100):], "longer": content + bytes(chance.randint(1, 9999))}
    file.write_bytes(changed[how])
    return f"{how} at {at}"


def _places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in parsed JSON."""
    found = []
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        found.append((node, key))
        if isinstance(value, (dict, list)):
            found += _places(value)
    return found


def _damage(content: Any, chance: random.Random) -> str:
    node, key = chance.choice(_places(content))
    how = chance.choice(("value", "value", "value", "gone", "name"))
    if how == "value":
        node[key] = chance.choice(NASTY)
        return f"{key!r:.60} = {node[key]!r:.40}"
    value = node.pop(key)
    if how == "name" and isinstance(node, dict):
        node[chance.choice(("", "x" * 600, f"{key}.weight", "blocks.999999.attn.proj.weight", str(key)[1:]))] = value
    return f"{key!r:.60} {how}"


def _json_file(file: Path, chance: random.Random) -> str:
    content = json.loads(file.read_text())
    done = _damage(content, chance)
    file.write_text(json.dumps(content))
    return done


def _header(file: Path, chance: random.Random) -> str:
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:8 + length])
    metadata = header.get("__metadata__", {})
    own = [name for name, text in metadata.items() if text.startswith("{")]
    if own and chance.random() < 0.4:
        said = json.loads(metadata[own[0]])
        done = _damage(said, chance)
        metadata[own[0]] = json.dumps(said)
    else:
        done = _damage(header, chance)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length:])
    return done


def _odd_tensor(tensor: Tensor, chance: random.Random) -> Tensor:
    spoiled = tensor.clone().float()
    if spoiled.numel():
        spoiled.view(-1)[chance.randrange(spoiled.numel())] = chance.choice((float("nan"), float("inf"), 3e38, -1e30))
    return chance.choice((spoiled, spoiled, tensor[:-1] if tensor.ndim else tensor, tensor.flatten(), tensor[None],
                          tensor.new_zeros(()), tensor.new_zeros(0), tensor.to(torch.int8), tensor.bool(),
                          tensor.half(), tensor.double(), tensor.bfloat16(), tensor.to(torch.float8_e4m3fn),
                          torch.view_as_complex(torch.zeros(*tensor.shape, 2)), tensor.expand(2, *tensor.shape))
                         ).contiguous()


def _change_table(tensors: dict[Any, Any], chance: random.Random) -> str:
    name = chance.choice([key for key, value in tensors.items() if isinstance(value, Tensor)])
    how = chance.choice(("odd", "odd", "odd", "gone", "renamed", "added"))
    if how == "odd":
        tensors[name] = _odd_tensor(tensors[name], chance)
    elif how == "gone":
        del tensors[name]
    else:
        other = chance.choice(("", "x", "alpha", f"{name}.alpha", f"module.{name}", name[1:], "blocks.1.attn.sr.weight",
                               "blocks.77.mlp.fc1.weight", "pixart_config", "pos_embed", "y_embedder.y_embedding",
                               name.replace("0", "12345"), "blocks.0.attn.q_norm.weight"))
        tensors[other] = tensors[name].clone() if how == "added" else tensors.pop(name)
    return f"{name} {how}"


def _tensors(file: Path, chance: random.Random) -> str:
    with safe_open(file, "pt") as source:
        metadata = source.metadata()
        tensors = {name: source.get_tensor(name).clone() for name in source.keys()}  # noqa: SIM118
    done = _change_table(tensors, chance)
    save_file(tensors, file, metadata)
    return done


def _mark(file: Path, chance: random.Random) -> str:
    """What a quantised layer says of itself, JSON in a tensor of bytes."""
    tensors = load_file(file)
    with safe_open(file, "pt") as source:
        metadata = source.metadata()
    name = chance.choice([each for each in tensors if each.endswith(".comfy_quant")])
    said = json.loads(bytes(tensors[name].tolist()))
    done = _damage(said, chance)
    tensors[name] = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
    save_file(tensors, file, metadata)
    return f"{name}: {done}"


def _torch_content(file: Path, chance: random.Random) -> str:
    zipped_file = zipfile.is_zipfile(file)
    content = torch.load(file, weights_only=True)
    table = content.get("state_dict", content)
    if chance.random() < 0.2:
        table[chance.choice((7, "inside", "state_dict"))] = chance.choice((table, content, torch.zeros(3), [1], "text"))
        done = "odd entry"
    else:
        done = _change_table(table, chance)
    torch.save(content, file, _use_new_zipfile_serialization=zipped_file)
    return done


def _record(file: Path, chance: random.Random) -> str:
    """One record of the archive changed, by preference the pickle."""
    with zipfile.ZipFile(file) as archive:
        records = {entry.filename: bytearray(archive.read(entry)) for entry in archive.infolist()}
    name = chance.choice([*records, *[name for name in records if name.endswith("data.pkl")] * len(records)])
    content = records[name]
    how = chance.choice(("bytes", "bytes", "bytes", "shorter", "gone", "swapped"))
    if how == "bytes" and content:
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.choice((*b"()].0Rcbhjqr}u\x85\x86\x87\x81Q\x93", 0, 255,
                                                                     chance.randrange(256)))
    elif how == "shorter":
        del content[chance.randrange(len(content) + 1):]
    elif how == "gone":
        del records[name]
    elif how == "swapped":
        other = chance.choice(list(records))
        records[name], records[other] = records[other], records[name]
    stream_out = io.BytesIO()
    with zipfile.ZipFile(stream_out, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for entry, data in records.items():
            archive.writestr(entry, bytes(data))
    file.write_bytes(stream_out.getvalue())
    return f"{name} {how}"

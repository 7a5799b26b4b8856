"""ImageReward: equal to its own package on the same random weights."""
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from reward.networks_at_hand import bert_vocabulary, images, randomised
from safetensors.torch import save_file
from torch import nn

from pixart.reward.eyes import clip_normalised, middle_square
from pixart.reward.image_reward import ImageReward
from pixart.weights import CheckpointError

WIDTH, DEPTH = 64, 2


def published(name: str) -> types.ModuleType:
    """One file of the image-reward package; what that imports besides would replace torch."""
    spec = importlib.util.find_spec("ImageReward")
    lacking = [needed for needed in ("ImageReward", "timm", "torchvision") if importlib.util.find_spec(needed) is None]
    if spec is None or lacking:
        pytest.skip(f"{', '.join(lacking)} not installed; image-reward is an oracle only")
    place = Path(spec.origin).parent / "models" / "BLIP" / f"{name}.py"
    text = place.read_text(encoding="utf-8")
    text = text.replace("from timm.models.registry import", "from timm.models import")
    text = text.replace("from timm.models.layers import", "from timm.layers import")
    text = text.replace("from timm.models.helpers import named_apply, adapt_input_conv", "")
    text = text.replace("from timm.models.vision_transformer import _cfg, PatchEmbed",
                        "from timm.models.vision_transformer import PatchEmbed")
    text = text.replace("from transformers.modeling_utils import (\n    PreTrainedModel,\n"
                        "    apply_chunking_to_forward,\n"
                        "    find_pruneable_heads_and_indices,\n    prune_linear_layer,\n)",
                        "from transformers.modeling_utils import PreTrainedModel\n"
                        "from transformers.pytorch_utils import apply_chunking_to_forward")
    text = text.replace("from fairscale.nn.checkpoint.checkpoint_activations import checkpoint_wrapper", "")
    module = types.ModuleType(f"published_{name}")
    sys.modules[module.__name__] = module
    exec(compile(text, str(place), "exec"), module.__dict__)        # noqa: S102 - a file of an installed package
    return module


def write(folder: Path) -> tuple[nn.Module, dict]:
    """The published layout with random weights: ImageReward.pt and vocab.txt."""
    from pixart.reward.image_reward import BlipScorer
    words = bert_vocabulary(folder)
    vision = {"hidden_size": WIDTH, "patch_size": 8, "image_size": 32, "intermediate_size": 4 * WIDTH,
              "num_hidden_layers": DEPTH, "layer_norm_eps": 1e-6, "num_attention_heads": 1, "hidden_act": "gelu"}
    text = {"vocab_size": words, "hidden_size": WIDTH, "encoder_hidden_size": WIDTH, "hidden_act": "gelu",
            "intermediate_size": 96, "num_hidden_layers": DEPTH, "layer_norm_eps": 1e-12, "num_attention_heads": 1,
            "is_decoder": True, "max_position_embeddings": 40, "pad_token_id": 0}
    network = randomised(BlipScorer(vision, text))
    state = {published_name(name): tensor for name, tensor in network.state_dict().items()}
    state["blip.vision_proj.weight"] = torch.zeros(3, WIDTH)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(state, folder / "ImageReward.pt")
    return network, state


def published_name(name: str) -> str:
    for ours, own in (("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
                      ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
                      ("vision.embeddings.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
                      ("vision.post_layernorm", "blip.visual_encoder.norm"),
                      ("vision.encoder.layers", "blip.visual_encoder.blocks"),
                      ("self_attn.projection", "attn.proj"), ("self_attn.qkv", "attn.qkv"), ("layer_norm1", "norm1"),
                      ("layer_norm2", "norm2"), ("text.", "blip.text_encoder.")):
        name = name.replace(ours, own)
    for index, place in reversed(list(enumerate((0, 2, 4, 6, 7)))):
        name = name.replace(f"mlp.{index}.", f"mlp.layers.{place}.") if name.startswith(f"mlp.{index}.") else name
    return name


@torch.no_grad()
def test_equals_its_package(tmp_path):
    vit, med = published("vit"), published("med")
    _, state = write(tmp_path)
    reward = ImageReward.open(tmp_path)
    eye = vit.VisionTransformer(img_size=32, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=1).eval()
    eye.load_state_dict({name.removeprefix("blip.visual_encoder."): value for name, value in state.items()
                         if name.startswith("blip.visual_encoder.")})
    config = med.BertConfig(vocab_size=reward.network.text.config.vocab_size, hidden_size=WIDTH, intermediate_size=96,
                            num_hidden_layers=DEPTH, num_attention_heads=1, max_position_embeddings=40)
    for name, value in {"encoder_width": WIDTH, "add_cross_attention": True, "fusion_layer": 0,
                        "chunk_size_feed_forward": 0, "_attn_implementation": "eager"}.items():
        setattr(config, name, value)
    # Its BertModel itself needs a transformers of 2021; what it is made of does not.
    reader = nn.ModuleDict({"embeddings": med.BertEmbeddings(config), "encoder": med.BertEncoder(config)}).eval()
    read_by = {name.removeprefix("blip.text_encoder."): value for name, value in state.items()
               if name.startswith("blip.text_encoder.") and not name.endswith("position_ids")}
    assert not reader.load_state_dict(read_by, strict=False).unexpected_keys
    seen = images()
    shown = eye(clip_normalised(middle_square(seen, 32)))
    for row, prompt in enumerate(("a cat", "two dogs run")):
        ids = torch.tensor([reward.tokenizer.encode(prompt).ids + [0] * 5])
        mask = (ids > 0).long()
        read = reader["encoder"](reader["embeddings"](ids), (1 - mask[:, None, None].float()) * -10000.0,
                                 encoder_hidden_states=shown[row:row + 1], return_dict=True, mode="multimodal",
                                 head_mask=[None] * DEPTH)
        want = read.last_hidden_state[:, 0]
        for place in (0, 2, 4, 6, 7):
            want = want @ state[f"mlp.layers.{place}.weight"].T + state[f"mlp.layers.{place}.bias"]
        want = (want[0, 0] - 0.16717362830052426) / 1.0333394966054072
        assert torch.allclose(reward(seen[row:row + 1], [prompt])[0], want, rtol=1e-4, atol=1e-5)


def test_reads_what_is_published_and_a_batch_is_its_rows(tmp_path):
    network, _ = write(tmp_path)
    reward = ImageReward.open(tmp_path / "ImageReward.pt")
    own = network.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in reward.network.state_dict().items())
    seen = images().requires_grad_()
    prompts = ["a cat", "a very long line of words that none of them will read to its end"]
    both = reward(seen, prompts)
    assert torch.allclose(both, torch.cat([reward(seen[i:i + 1], prompts[i:i + 1]) for i in range(2)]), rtol=1e-4)
    both.sum().backward()
    assert seen.grad.abs().sum() > 0


@torch.no_grad()
def test_scores_are_counted_in_deviations_from_the_published_mean(tmp_path):
    network, _ = write(tmp_path)
    for parameter in network.mlp[-1].parameters():
        parameter.zero_()
    found = network(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long))
    assert found.item() == pytest.approx(-0.16717362830052426 / 1.0333394966054072)


def test_a_long_prompt_keeps_its_beginning_and_its_end_token(tmp_path, caplog):
    write(tmp_path)
    reward = ImageReward.open(tmp_path)
    short, long = (reward.tokenizer.encode(text).ids for text in ("a", " ".join("a" * 60)))
    ids, mask = reward._tokens(["a", " ".join("a" * 60)])
    assert ids[1].tolist() == [*long[:34], short[-1]] and mask.sum(1).tolist() == [len(short), 35]
    assert ids[0].tolist() == short + [0] * (35 - len(short)) and "reads 35 tokens, a prompt has 62" in caplog.text


def test_what_is_missing_or_of_another_kind_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "vocab.txt").rename(tmp_path / "other.txt")
    with pytest.raises(FileNotFoundError, match="vocab.txt of google-bert/bert-base-uncased"):
        ImageReward.open(tmp_path)
    save_file({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match="not ImageReward"):
        ImageReward.open(tmp_path / "clip.safetensors")


@pytest.mark.parametrize("lost", ["pos_embed", "word_embeddings.weight", "position_embeddings.weight",
                                  "blocks.0.mlp.fc1.weight", "layer.0.intermediate.dense.weight",
                                  "blocks.1.norm1.bias"])
def test_a_part_of_it_is_named_with_what_it_lacks(tmp_path, lost):
    """Of some tensors that were missing it was a KeyError."""
    _, state = write(tmp_path)
    torch.save({name: tensor for name, tensor in state.items() if not name.endswith(lost)}, tmp_path / "ImageReward.pt")
    with pytest.raises(CheckpointError, match="it lacks"):
        ImageReward.open(tmp_path)

"""T5 in 8 bits on the host's layers: as exact as it should be, seen, moved and kept out of the GPU by the host."""
from unittest.mock import patch

import comfy.model_management
import torch
from support import MODELS, node, off, pack, refusal
from torch import Tensor

PROMPTS = ("a red cat on a mat", "", "two small circles")


def clip_in(bits: int | str):
    return pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", bits, "cpu")


def features(clip, prompt: str) -> Tensor:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]


def test_int8_is_nearer_to_16_bits_than_bitsandbytes_is():
    whole, ours, theirs = clip_in(16), clip_in("int8"), clip_in(8)
    for prompt in PROMPTS:
        want = features(whole, prompt)
        errors = [((features(clip, prompt) - want).norm() / want.norm()).item() for clip in (ours, theirs)]
        assert 0 < errors[0] < max(0.05, errors[1]), errors


def test_the_host_sees_every_weight_at_its_size():
    clip = clip_in("int8")
    network = clip.cond_stage_model.network
    linear = [layer for layer in network.modules() if getattr(layer, "weight", torch.zeros(())).dtype == torch.int8]
    assert len(linear) == 2 * 7
    size = sum(parameter.nbytes for parameter in network.parameters())
    assert clip.patcher.model_size() == size
    assert not any(parameter.is_meta for parameter in network.parameters())
    assert clip_in(8).patcher.model_size() == clip_in(8).cond_stage_model.bytes      # told, not seen


def test_layer_by_layer_out_of_the_gpu_it_says_the_same():
    clip = clip_in("int8")
    want = features(clip, "a red cat on a mat").clone()
    comfy.model_management.unload_all_models()
    device = torch.device("cpu")
    clip.patcher.patch_model(device_to=device, lowvram_model_memory=1000)
    try:
        assert clip.patcher.model.model_lowvram
        clip.cond_stage_model.cache.clear()
        got = clip.cond_stage_model.encode(pack("nodes.host.text").PromptRequest("a red cat on a mat")).context
        assert off(got, want) < 1e-5
    finally:
        clip.patcher.unpatch_model(device)


def test_patches_reach_rounded_weights():
    clip = clip_in("int8")
    want = features(clip, "a cat").clone()
    key = "network.t5.encoder.block.0.layer.0.SelfAttention.q.weight"
    patched = clip.clone()
    scale = clip.cond_stage_model.network.t5.encoder.block[0].layer[0].SelfAttention.q.weight_scale
    assert patched.add_patches({key: ("diff", (50 * scale.expand(-1, 64).clone(),))}) != []
    assert off(features(patched, "a cat"), want) > 1e-3        # not what was kept from before
    assert torch.equal(features(clip, "a cat"), want)


def test_it_is_still_there_after_the_host_unloads_it():
    clip = clip_in("int8")
    want = features(clip, "a cat").clone()
    comfy.model_management.unload_all_models()
    clip.cond_stage_model.cache.clear()
    assert torch.equal(features(clip, "a cat"), want)


def test_pinned_weights_leave_when_the_host_needs_room():
    """It sees none of them, and still lets them go before a model that needs their memory comes."""
    from comfy.patcher_extension import CallbacksMP
    clip = clip_in(8)
    release = clip.cond_stage_model.release
    clip.patcher.add_callback(CallbacksMP.ON_DETACH, lambda patcher, unpatch=True: release() if unpatch else None)
    comfy.model_management.load_models_gpu([clip.patcher])
    assert clip.cond_stage_model.encoder.model is not None
    comfy.model_management.free_memory(1e30, torch.device("cpu"))
    assert clip.cond_stage_model.encoder.model is None


def test_the_node_offers_it_and_it_is_not_saved():
    assert "int8" in node("PixArtT5Loader").INPUT_TYPES()["required"]["bits"][0]
    (clip,) = node("PixArtT5Loader")().load("tiny-t5", "int8", "cpu")
    assert "T5 in 8 bits cannot be saved" in refusal(clip.get_sd)
    assert "not 'int3'" in refusal(clip_in, "int3")


def test_auto_takes_what_the_cards_memory_holds():
    """On a card that has other models on it: they leave, so all of its memory counts."""
    text, path = pack("nodes.host.text"), MODELS / "text_encoders" / "tiny-t5"
    for room, bits in ((24 << 30, 16), (1 << 20, "int8")):
        with patch.multiple(comfy.model_management, extra_reserved_memory=lambda: 0, get_free_memory=lambda *_: 0,
                            get_total_memory=lambda *_, room=room: room):
            assert text.fitting_bits(path, "auto", torch.device("cuda")) == bits
    assert text.fitting_bits(path, 8, torch.device("cuda")) == 8

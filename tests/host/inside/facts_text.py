"""Prompts: our T5 as a CLIP of the host, the host's own T5, cleaning, limits, reports."""
import functools

import torch
from support import MODELS, WIDTH, latent, load, network, node, off, pack, refusal

PROMPT = "A (photo) of a CAT, see https://example.com &amp; more"


@functools.cache
def our_clip(bits: int = 16):
    return pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", bits, "auto")


@functools.cache
def stock_clip():
    """The host's own PixArt text encoder, tiny, with the weights of the same tiny T5."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders import pixart_t5
    from safetensors.torch import load_file
    sizes = {"num_layers": 2, "d_ff": 64, "num_heads": 4, "d_kv": 16, "d_model": WIDTH}
    clip = comfy.sd.CLIP(ClipTarget(pixart_t5.PixArtTokenizer, pixart_t5.PixArtT5XXL),
                         model_options={"t5xxl_model_config": sizes, "dtype": torch.float32})
    state = load_file(MODELS / "text_encoders" / "tiny-t5" / "model.safetensors")
    missing, _ = clip.cond_stage_model.load_sd({**state, "encoder.block.23.layer.1.DenseReluDense.wi_1.weight": None})
    assert not [name for name in missing if "block" in name]
    return clip


def encode(clip, text: str, family: str = "auto", width: int = 0, height: int = 0, **named: object):
    conditioning, report = node("PixArtTextEncode")().encode(clip, text, family, width, height, **named)
    (entry,) = conditioning
    return entry[0], entry[1], report


def test_the_stock_encode_node_takes_our_clip():
    import nodes
    (conditioning,) = nodes.CLIPTextEncode().encode(our_clip(), "a cat")
    want = our_clip().cond_stage_model.encoder.encode(["a cat"], 300, False).context
    assert torch.equal(conditioning[0][0], want)


def test_both_encoders_give_the_same_features():
    for family in ("alpha", "sigma"):
        ours, _, our_report = encode(our_clip(), "a red cat on a mat", family)
        theirs, _, their_report = encode(stock_clip(), "a red cat on a mat", family)
        assert off(ours, theirs) < 0.03         # bfloat16 against float32
        assert our_report == their_report


def test_alpha_cleans_and_sigma_does_not():
    clean, raw = encode(our_clip(), PROMPT, "alpha")[0], encode(our_clip(), PROMPT, "sigma")[0]
    encoder = our_clip().cond_stage_model.encoder
    assert torch.equal(clean, encoder.encode([PROMPT], 120, True).context)
    assert torch.equal(raw, encoder.encode([PROMPT], 300, False).context)
    assert clean.shape != raw.shape


def test_long_prompts_are_cut_and_reported():
    words = " ".join(f"word{i}" for i in range(2000))
    for clip in (our_clip(), stock_clip()):
        context, _, report = encode(clip, words, "alpha")
        assert context.shape == (1, 120, WIDTH)
        assert report.startswith("120 of 120 tokens") and "word" in report and "cut" in report
        assert encode(clip, words, "sigma")[0].shape[1] == 300


def test_a_cut_prompt_keeps_its_end_token():
    host = pack("nodes.host.text")
    tokens, _ = host.host_tokens(stock_clip(), "cat " * 500, host.Rules(False, 50))
    assert len(tokens["t5xxl"][0]) == 50 and tokens["t5xxl"][0][-1][0] == 1


def test_strange_prompts_are_encoded():
    cats, faces = "\u732b\u304c\u5ea7\u308b", "cat \U0001F600\U0001F680"
    for prompt in ("", " ", cats, faces, "((((", "a" * 5000, "\n\t", "<script>"):
        for family in ("alpha", "sigma"):
            context, _, report = encode(our_clip(), prompt, family)
            assert context.shape[1] >= 1 and torch.isfinite(context).all() and "tokens" in report


def test_an_empty_prompt_is_one_token():
    assert encode(our_clip(), "", "sigma")[0].shape[1] == 1


def test_auto_follows_the_connected_model():
    for name, family in (("alpha-1024", "alpha"), ("alpha-512", "alpha"), ("sigma-1024", "sigma")):
        auto = encode(our_clip(), PROMPT, model=load(name))[0]
        assert torch.equal(auto, encode(our_clip(), PROMPT, family)[0])


def test_auto_without_a_model_says_what_it_took():
    context, _, report = encode(our_clip(), PROMPT)
    assert torch.equal(context, encode(our_clip(), PROMPT, "alpha")[0])
    assert "Sigma" in report


def test_sizes_reach_the_conditioning_and_zero_leaves_them_out():
    assert {"width": 640, "height": 384}.items() <= encode(our_clip(), "a", width=640, height=384)[1].items()
    assert "width" not in encode(our_clip(), "a")[1]


def test_an_unchanged_prompt_does_not_run_the_encoder_again():
    clip = our_clip()
    encode(clip, "a prompt of its own", "alpha")
    misses = clip.cond_stage_model.cache.misses
    encode(clip, "a prompt of its own", "alpha")
    assert clip.cond_stage_model.cache.misses == misses
    encode(clip, "a prompt of its own", "sigma")
    assert clip.cond_stage_model.cache.misses == misses + 1


def test_the_encoder_comes_back_after_the_host_took_its_memory():
    clip = pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", 16, "cpu")
    before = encode(clip, "a cat")[0]
    clip.cond_stage_model.release()
    assert clip.cond_stage_model.encoder.model is None
    assert torch.equal(encode(clip, "a cat")[0], before)
    assert clip.cond_stage_model.encoder.model is None
    encode(clip, "a dog")
    assert clip.cond_stage_model.encoder.model is not None


def test_the_host_takes_the_memory_through_its_own_callback():
    from comfy.patcher_extension import CallbacksMP
    clip = our_clip().clone()
    called = []
    clip.patcher.add_callback(CallbacksMP.ON_DETACH, lambda patcher, unpatch=True: called.append(unpatch))
    clip.patcher.detach()
    assert called == [True]


def test_clones_and_hooks_work():
    clip = our_clip().clone()
    assert torch.equal(encode(clip, "a cat")[0], encode(our_clip(), "a cat")[0])
    assert clip.add_patches({"anything": ("diff", (torch.zeros(1),))}) == []


def test_eight_and_four_bits_are_near_sixteen():
    want = encode(our_clip(), "a red cat on a mat")[0]
    errors = []
    for bits in (8, 4):
        got = encode(our_clip(bits), "a red cat on a mat")[0]
        errors.append(((got - want).pow(2).mean() / want.pow(2).mean()).sqrt().item())
    assert 0 < errors[0] < 0.1 and errors[0] < errors[1] < 0.8, errors      # random weights are hard on 4 bits


def test_the_loader_lists_folders_and_files():
    names = node("PixArtT5Loader").INPUT_TYPES()["required"]["file"][0]
    assert "tiny-t5" in names and "wide-t5" in names
    (clip,) = node("PixArtT5Loader")().load("tiny-t5", "16", "cpu")
    assert clip.patcher.load_device == torch.device("cpu")


def test_a_missing_text_encoder_is_named():
    message = refusal(node("PixArtT5Loader")().load, "none", "8", "auto")
    assert "none" in message and "text_encoders" in message


def test_a_clip_with_other_encoders_is_refused():
    class Other:
        cond_stage_model = torch.nn.Identity()

        def tokenize(self, text: str) -> dict:
            return {"l": [[(1, 1.0)]], "g": [[(1, 1.0)]]}

    assert "T5-XXL alone" in refusal(encode, Other(), "a cat")


def test_the_null_caption_has_as_many_rows_as_the_text_has_tokens():
    model = load("alpha-1024")
    context, _, report = encode(our_clip(), "a red cat", "alpha", model=model, null_caption=True)
    tokens = int(report.split()[0])
    assert torch.equal(context[0], network(model).y_embedder.y_embedding[:tokens])


def test_the_null_caption_needs_a_model():
    assert "connect the MODEL" in refusal(encode, our_clip(), "a", "alpha", null_caption=True)


def test_text_to_latent_with_our_nodes_only():
    model = load("alpha-1024")
    conditioning, _ = node("PixArtTextEncode")().encode(our_clip(8), "a cat", "auto", 64, 64, model=model)
    (result,) = node("PixArtLCMSampler")().sample(model, conditioning, latent(64, 64), 1, 2, "official", 1.0)
    assert torch.isfinite(result["samples"]).all()

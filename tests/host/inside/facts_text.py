"""Prompts: our T5 as a CLIP of the host, the host's own T5, cleaning, limits, reports."""
import functools
import inspect
from pathlib import Path
from unittest.mock import patch

import comfy.model_management
import comfy.utils
import torch
from safetensors import safe_open
from support import (
    MODELS,
    WIDTH,
    heard_progress,
    latent,
    load,
    network,
    node,
    off,
    pack,
    refusal,
    stopped_by_the_user,
    vae,
)

PROMPT = r"A \(photo\) of a CAT, see https://example.com &amp; more"
PLAIN = PROMPT.replace("\\", "")
WEIGHTED = ("a (red:1.4) cat on a (mat)", r"a \(red\) cat, ((very) big:0.7) dog", "(a cat:0)", "a ( cat", "a) cat (b",
            "(one:1.1)(two:0.9), three", "a (b:c:1.3) d")


@functools.cache
def our_clip(bits: int = 16):
    return pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", bits, "auto")


@functools.cache
def stock_clip():
    """The host's own PixArt text encoder, tiny, with the weights of the same tiny T5."""
    from safetensors.torch import load_file
    return comfy_clip(load_file(MODELS / "text_encoders" / "tiny-t5" / "model.safetensors"))


def padding_clip():
    """The same file as the stock CLIPLoader opens it where its type is left at the first one: Mochi's."""
    from comfy.text_encoders import genmo
    from safetensors.torch import load_file
    return comfy_clip(load_file(MODELS / "text_encoders" / "tiny-t5" / "model.safetensors"),
                      (genmo.MochiT5Tokenizer, genmo.MochiT5XXL))


def comfy_clip(state: dict[str, torch.Tensor], kinds: tuple[type, type] | None = None):
    import comfy.sd
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders import pixart_t5
    tokenizer, network = kinds or (pixart_t5.PixArtTokenizer, pixart_t5.PixArtT5XXL)
    sizes = {"num_layers": 2, "d_ff": 64, "num_heads": 4, "d_kv": 16, "d_model": WIDTH}
    clip = comfy.sd.CLIP(ClipTarget(tokenizer, network),
                         model_options={"t5xxl_model_config": sizes, "dtype": torch.float32})
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


def test_the_padding_of_other_types_of_the_stock_loader_is_no_text():
    for prompt, words in (("a red cat on a mat", "9 of 120 tokens"), ("a cat " * 100, "words cut"), ("", "1 of 120")):
        got, extra, report = encode(padding_clip(), prompt, "alpha")
        want, _, wanted = encode(stock_clip(), prompt, "alpha")
        assert report == wanted and words in report and "<pad>" not in report
        assert off(got, want) < 1e-5 and extra["attention_mask"].all()


def test_alpha_cleans_and_sigma_does_not():
    clean, raw = encode(our_clip(), PROMPT, "alpha")[0], encode(our_clip(), PROMPT, "sigma")[0]
    encoder = our_clip().cond_stage_model.encoder
    assert torch.equal(clean, encoder.encode([PLAIN], 120, True).context)
    assert torch.equal(raw, encoder.encode([PLAIN], 300, False).context)
    assert clean.shape != raw.shape


def test_weights_are_those_of_the_hosts_own_t5():
    """On both encode nodes, with both CLIPs."""
    import nodes
    for prompt in WEIGHTED:
        (want,) = nodes.CLIPTextEncode().encode(stock_clip(), prompt)
        (got,) = nodes.CLIPTextEncode().encode(our_clip(), prompt)
        assert near(got[0][0], want[0][0]), prompt
        assert torch.equal(encode(our_clip(), prompt, "sigma")[0], got[0][0]), prompt
        assert torch.equal(encode(stock_clip(), prompt, "sigma")[0], want[0][0]), prompt
        ours, _, our_report = encode(our_clip(), prompt, "alpha")
        theirs, _, their_report = encode(stock_clip(), prompt, "alpha")
        assert near(ours, theirs), prompt
        assert our_report == their_report
        tokenizer = our_clip().cond_stage_model.encoder.tokenizer
        ids, weights, _ = tokenizer.encode_parts(prompt, 300, pack("pixart.text.emphasis").weighted_parts(prompt))
        assert list(zip(ids, weights)) == stock_clip().tokenize(prompt)["t5xxl"][0], prompt


def near(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Up to the rounding of bfloat16."""
    return got.shape == want.shape and float((got - want).norm() / want.norm()) < 0.05


def test_captions_of_training_have_brackets_that_are_text():
    encoders = pack("nodes.host.encoders")
    caption = r"a (red:1.4) cat \(left\)"
    ours = encoders.ClipEncoder(our_clip()).encode([caption], 300, False)
    theirs = encoders.ClipEncoder(stock_clip()).encode([caption], 300, False)
    assert ours.reports[0].text == theirs.reports[0].text == caption
    assert torch.equal(ours.context, our_clip().cond_stage_model.encoder.encode([caption], 300).context)
    assert near(ours.context, theirs.context)


def test_half_a_character_is_encoded_as_unknown():
    for clip in (our_clip(), stock_clip()):
        for family in ("alpha", "sigma"):
            context, _, report = encode(clip, "a cat \ud83d on", family)
            assert torch.isfinite(context).all() and report.encode()


def test_tokens_put_behind_each_other_are_all_encoded():
    """As nodes do it that break a prompt into sections."""
    clip = our_clip()
    first, second = (clip.tokenize(text) for text in ("a cat", "a big dog"))
    for joined in (first["pixart_t5"] + second["pixart_t5"], [first["pixart_t5"][0] + second["pixart_t5"][0]]):
        got = clip.encode_from_tokens({"pixart_t5": joined})
        want = torch.cat([clip.encode_from_tokens(each) for each in (first, second)], dim=1)
        assert torch.equal(got, want)


def test_encode_nodes_of_other_models_say_which_clip_they_need():
    import nodes
    every = nodes.NODE_CLASS_MAPPINGS
    calls = {
        "Flux": lambda: run_node(every["CLIPTextEncodeFlux"], our_clip(), "a", "b", 3.5),
        "SD3": lambda: run_node(every["CLIPTextEncodeSD3"], our_clip(), "a", "b", "c", "none"),
        "SDXL": lambda: run_node(every["CLIPTextEncodeSDXL"], our_clip(), 64, 64, 0, 0, 64, 64, "a", "b"),
        "HunyuanDiT": lambda: run_node(every["CLIPTextEncodeHunyuanDiT"], our_clip(), "a", "b"),
    }
    for name, call in calls.items():
        message = refusal(call)
        assert message.startswith("this node needs the CLIP of another model") and name in message, message


def run_node(kind: type, *arguments: object) -> object:
    """A stock node of either kind of class."""
    return getattr(kind if hasattr(kind, "define_schema") else kind(), kind.FUNCTION)(*arguments)


def saved(node_name: str, *arguments: object) -> Path:
    """What a stock node that saves has written."""
    import folder_paths
    from comfy_extras import nodes_model_merging
    before = set(Path(folder_paths.get_output_directory()).rglob("*.safetensors"))
    getattr(nodes_model_merging, node_name)().save(*arguments)
    (path,) = set(Path(folder_paths.get_output_directory()).rglob("*.safetensors")) - before
    return path


def test_clip_save_writes_what_both_loaders_read():
    path = saved("CLIPSave", our_clip(), "clip/test")
    encoder = our_clip().cond_stage_model.encoder
    again = type(encoder)(path, 16, "cpu", tokenizer=encoder.tokenizer.source)
    assert torch.equal(again.encode(["a red cat"], 120).context, encoder.encode(["a red cat"], 120).context)
    stock = comfy_clip({name: tensor.float() for name, tensor in comfy.utils.load_torch_file(str(path)).items()})
    assert off(encode(stock, "a red cat")[0], encode(our_clip(), "a red cat")[0]) < 0.03


def test_save_checkpoint_writes_the_text_encoder_too():
    path = saved("CheckpointSave", load("sigma-1024"), our_clip(), vae(), "checkpoints/test")
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith("text_encoders.t5xxl.transformer.")]  # noqa: SIM118
        want = our_clip().cond_stage_model.encoder.state_dict()
        assert len(names) == len(want)
        for name in names:
            assert torch.equal(file.get_tensor(name), want[name.removeprefix("text_encoders.t5xxl.transformer.")])


def test_a_clip_that_the_host_took_from_memory_is_still_saved_whole():
    clip = pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", 16, "cpu")
    names = set(clip.get_sd())
    clip.cond_stage_model.release()
    assert set(clip.get_sd()) == names and names


def test_few_bits_cannot_be_saved_and_nothing_is_written():
    import folder_paths
    from comfy_extras import nodes_model_merging
    before = set(Path(folder_paths.get_output_directory()).rglob("*"))
    for bits in (8, 4):
        for message in (refusal(nodes_model_merging.CLIPSave().save, our_clip(bits), "clip/none"),
                        refusal(nodes_model_merging.CheckpointSave().save, load("alpha-512"), our_clip(bits), vae(),
                                "none")):
            assert message.startswith(f"T5 in {bits} bits cannot be saved") and "tiny-t5" in message
    assert set(Path(folder_paths.get_output_directory()).rglob("*.*")) - before == set()


def test_merging_and_another_last_layer_are_refused():
    from comfy_extras import nodes_model_merging

    import nodes
    merge = nodes_model_merging.CLIPMergeSimple().merge
    assert "cannot be merged" in refusal(merge, our_clip(), our_clip(8), 0.5)
    (clip,) = nodes.CLIPSetLastLayer().set_last_layer(our_clip(), -2)
    assert "last layer" in refusal(nodes.CLIPTextEncode().encode, clip, "a cat")


def test_long_prompts_are_cut_and_reported():
    words = " ".join(f"word{i}" for i in range(2000))
    for clip in (our_clip(), stock_clip()):
        context, _, report = encode(clip, words, "alpha")
        assert context.shape == (1, 120, WIDTH)
        assert report.startswith("120 of 120 tokens") and "word" in report and "cut" in report
        assert encode(clip, words, "sigma")[0].shape[1] == 300


def test_a_cut_prompt_keeps_its_end_token():
    host = pack("nodes.host.text")
    tokens, _ = pack("nodes.host.stock_tokens").host_tokens(stock_clip(), "cat " * 500, host.Rules(False, 50))
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


def test_for_a_prompt_that_is_kept_the_host_makes_no_room():
    import comfy.sd
    from comfy.model_management import load_models_gpu
    clip = our_clip()
    encode(clip, "a prompt to keep")
    if not inspect.signature(comfy.sd.CLIP.load_model).parameters.get("tokens"):
        return                  # older hosts load before they say what for
    for prompt, loads in (("a prompt to keep", 0), ("a prompt that is new", 1), ("a prompt that is new", 0)):
        with patch("comfy.sd.model_management.load_models_gpu", wraps=load_models_gpu) as loading:
            encode(clip, prompt)
        assert loading.call_count == loads, prompt
    assert clip.load_model() is clip.patcher


def test_the_encoder_comes_back_after_the_host_took_its_memory():
    clip = pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", 16, "cpu")
    before = encode(clip, "a cat")[0]
    clip.cond_stage_model.release()
    assert clip.cond_stage_model.encoder.model is None
    assert torch.equal(encode(clip, "a cat")[0], before)
    assert clip.cond_stage_model.encoder.model is None
    encode(clip, "a dog")
    assert clip.cond_stage_model.encoder.model is not None


def test_the_host_knows_what_is_loaded_from_the_start():
    """Or it would make room a second time for what is there, and send the MODEL away at every new prompt."""
    from comfy.model_management import LoadedModel
    clip = pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", 16, "cpu")
    needed = [LoadedModel(clip.patcher).model_memory_required(torch.device("cpu"))]
    clip.patcher.detach()
    needed.append(LoadedModel(clip.patcher).model_offloaded_memory())
    assert needed == [0, clip.cond_stage_model.bytes]


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


# -- long prompts ------------------------------------------------------------------------------------------------------

SENTENCES = "a red cat. a (blue. dog:1.3) on a mat! the end"


def test_long_prompts_are_put_together_from_sentences_with_either_clip():
    for clip in (our_clip(), stock_clip()):
        parts = [encode(clip, text)[0] for text in ("a red cat.", "a (blue. dog:1.3) on a mat!", "the end")]
        plain, _, report = encode(clip, SENTENCES, long_prompt="segments")
        assert torch.equal(plain, torch.cat([parts[0][:, :-1], parts[1][:, :-1], parts[2]], 1))
        assert "segment 2, " in report and f"{plain.shape[1]} of {plain.shape[1]} tokens" in report
        kept = encode(clip, SENTENCES, long_prompt="segments", inner_ends=True)[0]
        assert torch.equal(kept, torch.cat(parts, 1))
        assert torch.equal(encode(clip, "a red cat.", long_prompt="segments")[0], parts[0])


def test_a_prompt_of_many_sentences_reports_progress_and_can_be_interrupted():
    """10,000 words ran for minutes on a CPU, and Cancel did nothing meanwhile."""
    for clip in (our_clip(), stock_clip()):
        with heard_progress() as heard:
            encode(clip, SENTENCES, long_prompt="segments")
            assert (1, 3) in heard and heard[-1] == (3, 3)      # newer hosts leave out what follows too quickly
            assert stopped_by_the_user(encode, clip, SENTENCES, long_prompt="segments")
            assert not comfy.model_management.processing_interrupted(), "the mark is taken back"
            assert encode(clip, SENTENCES, long_prompt="segments")[0] is not None


def test_whole_prompts_are_not_cut_with_either_clip():
    for clip in (our_clip(), stock_clip()):
        cut, whole = (encode(clip, "a cat " * 200, long_prompt=mode) for mode in ("truncate", "whole"))
        assert cut[0].shape[1] == 120 < whole[0].shape[1]
        assert "words cut" in cut[2] and "words cut" not in whole[2]
        assert "longer than the 120 tokens of PixArt's training captions" in whole[2]
    assert "inner end tokens are those of segments" in refusal(encode, our_clip(), "a", inner_ends=True)

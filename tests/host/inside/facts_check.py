"""PixArt Check: what parts are, whether they fit, what is wrong; nothing is run."""
import functools
from types import SimpleNamespace
from unittest.mock import patch

import comfy.model_base
import torch
from facts_text import stock_clip
from support import MODELS, load, load_control, node, pack, vae


def check(width: int = 1024, height: int = 1024, batch_size: int = 1, **parts: object) -> tuple[str, bool]:
    return node("PixArtCheck")().check(width, height, batch_size, **parts)


@functools.cache
def clip(name: str = "tiny-t5"):
    return pack("nodes.host.text").load_clip(MODELS / "text_encoders" / name, 16, "auto")


def test_parts_that_fit_are_named_with_their_memory():
    report, fits = check(model=load("deep-1024"), clip=clip(), vae=vae(), control_net=load_control())
    assert fits and report.startswith("No problem was found."), report
    for said in ("MODEL: PixArt-alpha 1024", "float32", "120 tokens", "T5 that gives 64 numbers", "16 bits",
                 "VAE: ", "4 channels", "CONTROL_NET: ", "encoding the prompt", "sampling", "decoding", "free on cpu"):
        assert said in report, (said, report)


def test_any_part_alone_is_enough_and_none_is_too_little():
    for parts in ({"model": load("sigma-1024")}, {"clip": clip()}, {"vae": vae()}, {"control_net": load_control()}):
        report, fits = check(**parts)
        assert fits, report
    report, fits = check()
    assert not fits and "nothing is connected" in report


def test_a_bigger_image_needs_more():
    examine = pack("nodes.host.fitness").examine
    small, large = (examine(load("alpha-1024"), None, vae(), None, side, side, 1).needs for side in (512, 2048))
    assert small["sampling"] < large["sampling"] and small["decoding"] < large["decoding"]
    assert "Notice: " in check(256, 256, model=load("alpha-1024"))[0]


def test_what_does_not_fit_is_said():
    for finding, parts in (
            ("gives 128 numbers a token, the model takes 64", {"model": load("alpha-1024"), "clip": clip("wide-t5")}),
            ("this ControlNet was made for PixArt-Sigma", {"model": load("deep-1024"),
                                                           "control_net": load_control("control-sigma")}),
            ("PROBLEM: ", {"model": load("deep-1024"), "control_net": load_control("control-wide")})):
        report, fits = check(**parts)
        assert not fits and finding in report, report


def test_a_stock_text_encoder_is_recognised():
    report, fits = check(model=load("alpha-1024"), clip=stock_clip())
    assert fits and "T5 that gives 64 numbers a token, of a stock loader" in report, report


def test_a_t5_beside_other_encoders_is_said():
    """As the stock CLIPLoader gives it with type sd3; PixArt Text Encode refuses it in the same words."""
    from comfy.text_encoders import sd3_clip
    several = stock_clip().clone()
    several.tokenizer = sd3_clip.SD3Tokenizer()
    report, fits = check(model=load("alpha-1024"), clip=several)
    assert not fits and "PROBLEM: this CLIP holds g, l, t5xxl; PixArt needs T5-XXL alone" in report, report


def test_what_a_t5_does_where_memory_is_short_depends_on_how_it_was_loaded():
    fitness, cuda, cpu = pack("nodes.host.fitness"), torch.device("cuda"), torch.device("cpu")
    movable = pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", "int8", "cpu")

    def said(text_encoder, place: torch.device) -> str:
        report = fitness.FitReport(needs={fitness.ENCODING_STAGE: 9e9})
        given = SimpleNamespace(patcher=SimpleNamespace(load_device=place), cond_stage_model=text_encoder)
        with patch("comfy.model_management.get_free_memory", lambda *_: 1e9):
            fitness.of_memory(report, SimpleNamespace(load_device=cuda), given)
        return "\n".join(report.facts)
    assert "with bits int8, or with device cpu" in said(clip().cond_stage_model, cuda)
    assert "keep a part in main memory" in said(movable.cond_stage_model, cuda)
    apart = said(clip().cond_stage_model, cpu)
    assert "encoding the prompt 8.38 GiB (on cpu)" in apart and "more than is free" not in apart


def test_models_of_other_loaders_are_told_apart():
    foreign = pack("nodes.host.fitness").foreign

    class Patcher:
        def __init__(self, model: object) -> None:
            self.model = model
    native = object.__new__(comfy.model_base.PixArt)
    assert "loaded by a stock node" in foreign(Patcher(native))
    assert "not of the PixArt family (SDXL)" in foreign(Patcher(object.__new__(comfy.model_base.SDXL)))

"""Whatever reaches a node, directly or through a link: one clear error that names the input, and nothing else."""
import re

import comfy.model_management
import torch
from support import WIDTH, condition, image, latent, load, load_control, node, pack, text, vae

NAN, HUGE = float("nan"), 2 ** 62
HOSTILE = (None, "text", "", 0, -1, 1.5, HUGE, -HUGE, NAN, float("inf"), [], {}, (), b"bytes", True, object(),
           torch.zeros(0), torch.zeros(2, 2), torch.full((1, 8, 8, 3), NAN), {"samples": None}, {"samples": "text"},
           [[None, {}]], [[torch.zeros(1, 2, WIDTH)]], [torch.zeros(1, 2, WIDTH)])


def proper() -> dict[str, dict]:
    """Arguments for each node that work."""
    from facts_text import our_clip
    model, deep, prompt = load("alpha-1024"), load("deep-1024"), condition(text(3))
    control = load_control()
    lcm = {"model": model, "positive": prompt, "latent": latent(64, 64), "seed": 1, "steps": 1, "rule": "official",
           "denoise": 1.0, "negative": prompt, "cfg": 1.0}
    return {
        "PixArtLoader": {"file": "alpha-512.safetensors", "variant": "auto", "weight_dtype": "fp32"},
        "PixArtT5Loader": {"file": "tiny-t5", "bits": "16", "device": "cpu"},
        "PixArtTextEncode": {"clip": our_clip(), "text": "a cat", "family": "auto", "width": 64, "height": 64,
                             "model": model, "null_caption": False},
        "PixArtEmptyLatent": {"resolution": "128", "ratio": "1:1", "batch_size": 1},
        "PixArtControlNetLoader": {"file": "control.safetensors", "weight_dtype": "fp32"},
        "PixArtControlNetApply": {"positive": prompt, "control_net": control, "image": image(16, 16), "vae": vae(),
                                  "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "fade": 0.0, "blocks": 0,
                                  "negative": prompt},
        "PixArtEdges": {"image": image(16, 16), "method": "soft", "low": 0.4, "high": 0.8, "blur": 1.0,
                        "strength": 2.0, "width": 16, "height": 16},
        "PixArtLCMSampler": lcm,
        "PixArtLCMSigmas": {name: lcm[name] for name in ("model", "steps", "rule", "denoise")},
        "PixArtDMDSampler": {name: lcm[name] for name in ("model", "positive", "latent", "seed")},
        "PixArtDeltaLoraLoader": {"model": deep, "file": "tiny-lora.safetensors", "strength": 1.0, "alpha": 0.0},
    }


def run(kind: str, arguments: dict) -> object:
    cls = node(kind)
    return getattr(cls(), cls.FUNCTION)(**arguments)


def test_what_is_right_runs():
    for kind, arguments in proper().items():
        run(kind, arguments)


def test_what_is_wrong_is_one_clear_error():
    """For every input of every node; whatever is not refused must run."""
    refused = 0
    for kind, arguments in proper().items():
        for name in arguments:
            for value in HOSTILE:
                try:
                    run(kind, {**arguments, name: value})
                except (ValueError, FileNotFoundError) as error:
                    refused += 1
                    finding = re.split(r"[;.:] ", str(error))[0]
                    assert len(finding) < 80 and "\n" not in finding, (kind, name, str(error))
                except BaseException as error:
                    raise AssertionError(f"{kind}.{name} = {value!r}: {type(error).__name__}: {error}") from error
    assert refused > 1000


def test_a_number_that_is_none_is_named():
    arguments = proper()["PixArtLCMSampler"]
    for name, value in (("cfg", NAN), ("denoise", NAN), ("steps", 0), ("steps", 2.0), ("seed", -1)):
        message = refused_with("PixArtLCMSampler", {**arguments, name: value})
        assert message.startswith(f"{name} is {value}; expected a "), message


def test_null_and_text_on_a_wire_are_named():
    arguments = proper()["PixArtLCMSampler"]
    for name, kind in (("model", "MODEL"), ("positive", "CONDITIONING"), ("latent", "LATENT")):
        for value, found in ((None, "nothing (null)"), ("text", "the text 'text'")):
            message = refused_with("PixArtLCMSampler", {**arguments, name: value})
            assert message.startswith(f"{name} is {found}; expected a {kind}"), message


def test_a_batch_that_fits_into_no_memory_is_refused():
    room = comfy.model_management.get_total_memory(torch.device("cpu"))
    fits = room // (2048 * 2048 * 12)
    message = refused_with("PixArtEmptyLatent", {"resolution": "2048", "ratio": "1:1", "batch_size": 4096})
    assert message.startswith("4096 images of 2048 x 2048 take 206 GB") and f"at most {fits}" in message
    made, _, _ = run("PixArtEmptyLatent", {"resolution": "128", "ratio": "1:1", "batch_size": 3000})
    assert len(made["samples"]) == 3000


def refused_with(kind: str, arguments: dict) -> str:
    try:
        run(kind, arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError("it was not refused")


def test_errors_have_names_that_the_page_can_show():
    """It shows the full name of the class; a dotted path would be all that is seen."""
    for kind, file in (("PixArtLoader", "flux.safetensors"), ("PixArtLoader", "gone.safetensors"),
                       ("PixArtT5Loader", "gone"), ("PixArtControlNetLoader", "sd15.safetensors")):
        try:
            run(kind, {**proper()[kind], "file": file})
        except Exception as error:
            assert type(error).__module__ == "builtins", type(error)
            assert type(error.__cause__).__module__.startswith(pack().__name__)
        else:
            raise AssertionError("it was not refused")

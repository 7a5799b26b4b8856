"""The plan for a memory: every rule, at T5-XXL and the published transformers, against figures that were measured."""
import pytest
import torch

from pixart.config import VARIANTS
from pixart.fit import pass_bytes, plan_for, plan_loading, transformer_bytes
from pixart.mini import SHIPPED
from pixart.text.fitting import AUTO, GIB, ORDER, bytes_of, fit_t5, t5_bytes

CUDA = torch.device("cuda")
CONFIG = VARIANTS["alpha-1024"]


def t5_xxl() -> dict[str, tuple[int, ...]]:
    block = "encoder.block.{}.layer.{}.{}.weight"
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (32128, 4096), "encoder.final_layer_norm.weight": (4096,),
                                          block.format(0, 0, "SelfAttention.relative_attention_bias"): (32, 64)}
    for index in range(24):
        shapes |= {block.format(index, 0, f"SelfAttention.{leaf}"): (4096, 4096) for leaf in "qkvo"}
        shapes |= {block.format(index, 1, f"DenseReluDense.{leaf}"): (10240, 4096) for leaf in ("wi_0", "wi_1")}
        shapes[block.format(index, 1, "DenseReluDense.wo")] = (4096, 10240)
    return shapes


XXL = t5_xxl()


def of(gib: float, **named: object):
    return plan_loading(int(gib * GIB), XXL, CONFIG, CUDA, **named)


def test_sizes_of_t5_are_those_measured():
    assert t5_bytes(XXL, 16) == pytest.approx(9.5e9, rel=0.01)
    assert t5_bytes(XXL, 8) / GIB == pytest.approx(5.5, abs=0.1)        # the text stage of the GPU run held 5.53 GiB
    assert [t5_bytes(XXL, bits) for bits in ORDER[:1]] > [t5_bytes(XXL, "int8")] > [t5_bytes(XXL, 4)]


@pytest.mark.parametrize("name, bits, wanted", [
    ("SelfAttention.q", 16, 16), ("SelfAttention.q", 8, 8 + 32 / 4096), ("SelfAttention.q", "int8", 8 + 32 / 4096),
    ("SelfAttention.q", 4, 4 + 8 / 64 + 32 / (64 * 256)),           # NF4: a scale for 64, and one for 256 of these
    ("DenseReluDense.wi_0", 4, 4 + 8 / 64 + 32 / (64 * 256)), ("DenseReluDense.wo", 4, 16),
    ("DenseReluDense.wo", 8, 16), ("DenseReluDense.wo", "int8", 8 + 32 / 4096),
    ("SelfAttention.relative_attention_bias", 4, 16)])
def test_bits_of_a_weight_are_those_of_its_layer(name, bits, wanted):
    found = 8 * bytes_of(f"encoder.block.0.layer.0.{name}.weight", (4096, 4096), bits)
    assert found == pytest.approx(wanted, abs=1e-3) and 8 * bytes_of("shared.weight", (32128, 4096), bits) == 16


def test_the_size_of_the_transformer_is_that_of_the_published_file():
    assert transformer_bytes(CONFIG) == pytest.approx(1.22e9, rel=0.02)


@pytest.mark.parametrize("gib, bits, device", [
    (24, 16, "cuda"), (12, 16, "cuda"), (8, "int8", "cuda"), (6, "int8", "cuda"), (5, 4, "cuda"), (4, "int8", "cpu"),
    (2, "int8", "cpu")])
def test_the_best_precision_that_fits_is_taken(gib, bits, device):
    found = of(gib)
    assert (found.bits, found.t5_device.type) == (bits, device)
    assert found.fits == (gib > 1.7) and str(found).startswith(f"{gib:.1f} GiB are free on cuda: T5")


def test_sides_off_the_grid_count_as_they_are_sampled():
    """They are rounded up inside; here they were rounded down."""
    one = pass_bytes(CONFIG, 1024, 1024, 1)
    assert one / GIB == pytest.approx(0.12, abs=0.005) and pass_bytes(CONFIG, 1024, 1024, 6) == 6 * one
    assert pass_bytes(CONFIG, 1001, 1001, 2) == pass_bytes(CONFIG, 1008, 1008, 2) > pass_bytes(CONFIG, 992, 992, 2)


def test_more_memory_never_gives_less():
    plans = [of(gib / 2) for gib in range(2, 60)]
    ranks = [len(ORDER) if each.t5_device.type == "cpu" else ORDER.index(each.bits) for each in plans]
    assert ranks == sorted(ranks, reverse=True)
    tiles = [each.parts.tile or 10 ** 6 for each in plans]
    assert tiles == sorted(tiles)


def test_what_is_chosen_fits():
    for gib in range(2, 40):
        found = of(gib)
        if found.t5_device.type == "cuda":
            assert t5_bytes(XXL, found.bits) < 0.9 * gib * GIB
        if found.keep_t5:
            assert t5_bytes(XXL, found.bits) + transformer_bytes(CONFIG) < 0.9 * gib * GIB


def test_an_image_is_decoded_as_a_whole_rather_than_t5_kept_beside_it():
    """A card of 8 GB: the plan kept both, for which there is no room."""
    found = of(7.3)
    assert found.bits == "int8" and not found.keep_t5 and found.parts.tile is None
    assert of(16).keep_t5 and of(16).parts.tile is None


def test_a_quantised_file_stays_quantised_only_where_it_must():
    assert not of(4, quantized_bytes=int(0.45 * GIB)).keep_quantized
    assert of(1.4, quantized_bytes=int(0.45 * GIB)).keep_quantized           # the weights fit, and a pass no more
    tight = of(1.2, quantized_bytes=int(0.45 * GIB))
    assert tight.keep_quantized and tight.fits and "quantised" in str(tight)
    assert not of(1.2).fits and "too much" in str(of(1.2))


def test_the_words_say_what_was_chosen():
    text = str(of(6))
    for part in ("6.0 GiB are free on cuda", "in int8", "It is freed before the transformer is loaded", "decoded"):
        assert part in text


def test_a_plan_for_files_and_this_machine():
    from pixart.checkpoint import read_config
    found = plan_for(SHIPPED.t5, read_config(SHIPPED.student), torch.device("cpu"))
    assert found.bits == 16 and found.keep_t5 and found.fits and found.parts.tile is None


def test_auto_stands_for_the_best_precision_of_a_file_and_others_for_themselves():
    cpu = torch.device("cpu")
    whole = fit_t5(SHIPPED.t5, AUTO, cpu)
    assert whole.bits == 16 and whole.device == cpu and "T5 is loaded in 16 bits" in whole.words
    small = fit_t5(SHIPPED.t5, AUTO, CUDA, free=GIB // 8)
    assert (small.bits, small.device) == ("int8", cpu) and "needs 0.2 GiB at least" in small.words
    assert fit_t5("nowhere", 4, cpu).bits == 4
    with pytest.raises(ValueError, match="not 7"):
        fit_t5(SHIPPED.t5, 7, cpu)


def test_without_bitsandbytes_only_what_needs_none_is_chosen(monkeypatch):
    from pixart.text import fitting
    assert fitting.precisions_on(torch.device("mps")) == (16, "int8")
    monkeypatch.setattr(fitting.importlib.util, "find_spec", lambda name: None)
    assert fitting.precisions_on(CUDA) == (16, "int8")


def test_a_pipeline_chooses_when_it_is_opened_and_says_what(caplog):
    from pixart import Pipeline
    pipe = Pipeline.open(bits="auto", device="cpu")
    assert pipe.t5.bits == 16 and "T5 is loaded in 16 bits" in caplog.text
    assert len(pipe("a red star on a sand background", steps=1)) == 1

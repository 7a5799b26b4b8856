"""Everything around the transformer on a CUDA device: text, quantised weights, images, edges, rewards, PixArt-mini."""
from collections.abc import Callable

import pytest
import torch
from on_cuda.pretend import GPU, Cuda, CudaTensor, bare
from quantize.test_convert import random_model
from reward import networks_at_hand
from torch import Tensor, nn

from pixart.control.edges import EDGE_METHODS, edge_maps
from pixart.control.hed import HED, hed_edges
from pixart.generation.pipeline import Pipeline
from pixart.mini import SHIPPED
from pixart.mini.autoencoder import AutoencoderConfig, MiniAutoencoder
from pixart.mini.catalogue import SceneWish, build_catalogue
from pixart.mini.judge import load_judge
from pixart.mini.measure.batches import BenchImages
from pixart.mini.measure.distances import features_of, kernel_distances
from pixart.mini.measure.similarity import similarities
from pixart.mini.scenery import Scenery
from pixart.mini.stream import EndlessData
from pixart.mini.text_encoder import MINI_TOKENS, build_encoder, build_tokenizer
from pixart.quantize import TARGETS
from pixart.quantize.adaptive import Adaptation, adapt_block
from pixart.quantize.calibrate import record
from pixart.quantize.layer import QuantizedLinear
from pixart.reward.clip import ClipReward
from pixart.reward.judge import JudgeReward
from pixart.reward.optimise import NoiseRecipe, optimise_noise
from pixart.reward.protocol import WeightedSum
from pixart.reward.reno import reno
from pixart.reward.table import RewardChoice, open_rewards
from pixart.text.t5 import T5Encoder
from pixart.train.draws import generator_for

PROMPTS = ["a large red circle on the left on a white background", "a small blue star on the left on a navy background"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(count: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def same(got: Tensor, want: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(bare(got), want, **(tolerance or {"rtol": 1e-4, "atol": 1e-4}))


# -- weights -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("target", TARGETS)
def test_quantised_layers_run_and_copy_nothing_after_the_first_time(gpu: Cuda, target):
    quantized = TARGETS[target].quantize(random(64, 256))
    layer, x = QuantizedLinear(quantized, random(64)), random(2, 3, 256, seed=2)
    want = layer(x)
    layer.to(GPU)
    layer(x.to(GPU))
    gpu.forget()
    x = CudaTensor(x)
    same(layer(x), want)
    assert layer.half()(x.half()).dtype == torch.float16
    assert gpu.uploads == gpu.waits == 0, gpu.sites


@pytest.mark.parametrize("target", TARGETS)
def test_quantising_on_the_device_quantises_the_same(gpu: Cuda, target):
    weight = random(128, 256)
    want, got = (TARGETS[target].quantize(each).tensors for each in (weight, weight.to(GPU)))
    for name, tensor in want.items():
        assert torch.equal(bare(got[name]).float(), tensor.float()), name


def test_rounding_is_adapted_to_calibration_data(gpu: Cuda):
    from on_cuda.test_sample import encoded

    from pixart.generation.request import Request
    model = random_model().to(GPU)
    request = Request(("a", "b"), height=64, width=64, sampler="dpm", steps=2, guidance=3.0)
    captions = encoded(5, 3, width=model.config.caption_width)
    inputs = record(model, request, captions, encoded(2, width=model.config.caption_width), 4)
    block = model.blocks[0].float()
    made = adapt_block(block, {"mlp.fc1": TARGETS["fp4"].options((768, 192), {"float": "e2m1"})}, inputs,
                       inputs.through(block), Adaptation(iterations=3, batch=2))
    assert torch.isfinite(bare(made["mlp.fc1"].dequantized())).all()


# -- text --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bits", [16, "int8"])
def test_text_is_encoded_as_on_a_cpu(gpu: Cuda, bits):
    def run(device: str) -> Tensor:
        encoder = T5Encoder(SHIPPED.t5, bits, device)
        found = encoder.encode([*PROMPTS, "a (red:1.3) ring"], 64, batch=2, emphasis=True)
        encoder.close()
        return found.context
    torch.testing.assert_close(run("cuda"), run("cpu"), rtol=1e-3, atol=1e-3)


# -- images ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", EDGE_METHODS)
def test_edges_lie_where_the_images_lie(gpu: Cuda, method):
    same(edge_maps(images().to(GPU), method), edge_maps(images(), method))


def test_hed_runs_where_its_weights_are(gpu: Cuda):
    network = networks_at_hand.randomised(HED()).requires_grad_(False)
    want = hed_edges(network, images())
    network.to(GPU)
    torch.testing.assert_close(hed_edges(network, images()), want, rtol=1e-3, atol=1e-3)
    same(hed_edges(network, images().to(GPU)), want)


# -- rewards -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("relevance", [1.0, 0.3])
def test_rewards_score_the_same(gpu: Cuda, tmp_path, relevance):
    networks_at_hand.hugging_face_clip(tmp_path)
    parts = JudgeReward.open(), ClipReward.open("clip", tmp_path)
    for part in parts:
        part.reweight(relevance, PROMPTS)       # on the CPU, before a training moves it
    rewards = WeightedSum([(part, 0.5) for part in parts])
    want = rewards(images(), PROMPTS)
    same(rewards.to(GPU)(images().to(GPU), PROMPTS), want)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_noise_climbs_towards_a_reward(gpu: Cuda, where):
    from reward.test_optimise import generate, noise

    class Dark(nn.Module):
        name = "dark"

        def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
            return -images.square().sum((1, 2, 3))
    found = optimise_noise(lambda x: generate(x.to(GPU)), WeightedSum([(Dark(), 1.0)]), ["x", "y"], noise(2).to(where),
                           NoiseRecipe(iterations=4))
    assert found.noise.device.type == found.total.device.type == "cpu"
    assert (found.total > torch.tensor(found.history[0].total)).any()


@pytest.mark.parametrize("by", ["gradient", "best-of-n"])
def test_reno_runs(gpu: Cuda, by):
    pipe = Pipeline.open(SHIPPED.student, SHIPPED.vae, SHIPPED.t5, "cuda", bits=16)
    reward = open_rewards([RewardChoice("judge")], device="cuda")
    found = reno(pipe, PROMPTS[0], reward, NoiseRecipe(iterations=2), steps=1, width=64, height=64, by=by)
    assert torch.isfinite(found.total).all()


# -- PixArt-mini -------------------------------------------------------------------------------------------------------

@pytest.fixture
def scenery(gpu: Cuda) -> Scenery:
    words = build_tokenizer().get_vocab()
    return Scenery(build_catalogue(SceneWish(0), 60, words).to(GPU),
                   build_catalogue(SceneWish(0, crowded=True), 20, words).to(GPU), 0.3)


def measured(measure: Callable, model: nn.Module, count: int, device: torch.device) -> dict[str, float]:
    """On fewer images, which take long to generate."""
    return measure(model, 50, device)


def test_endless_data_is_made_where_it_is_used(gpu: Cuda, scenery):
    tokenizer = build_tokenizer()
    data = EndlessData(scenery, MiniAutoencoder(AutoencoderConfig((4, 4, 4, 4))).to(GPU),
                       build_encoder(len(tokenizer)).to(GPU), MINI_TOKENS, hints=True, autocast=True)
    data.remember()
    for device in ("cpu", "cuda"):
        batch = data.batch(generator_for(0, 5, device=device), 4)
        assert all(isinstance(part, CudaTensor) for part in (batch.latents, batch.context, batch.mask, batch.size))
        data.without_caption(batch, torch.tensor([True, False, True, False]).to(GPU))


def test_a_bench_measures_the_same(gpu: Cuda):
    def run(device: str, network: nn.Module) -> list[Tensor]:
        drawn, real = (BenchImages.of(list(torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(seed))))
                       for seed in (1, 2))
        seen = [features_of(network, each, 4, torch.device(device)) for each in (drawn, real)]
        return [kernel_distances(*seen), *similarities(network, drawn, real, 4, torch.device(device)).values()]
    network = load_judge(SHIPPED.judge)
    want = run("cpu", network)
    for got, value in zip(run("cuda", network.to(GPU)), want):
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-3)

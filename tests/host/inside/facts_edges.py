"""Edge maps in the host: IMAGE in, IMAGE out, weights found or asked for by name."""
import shutil
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from support import MODELS, heard_progress, pack, refusal, stopped_by_the_user

NAME = "ControlNetHED.pth"


def edges(image: torch.Tensor, method: str = "soft", low: float = 0.4, high: float = 0.8, **size: int) -> torch.Tensor:
    (found,) = pack("nodes.edges").PixArtEdges().find(image, method, low, high, 1.0, 2.0, **size)
    return found


def hed(image: torch.Tensor, file: str = NAME, **size: int) -> torch.Tensor:
    (found,) = pack("nodes.edges").PixArtHED().find(image, file, **size)
    return found


def image(height: int = 40, width: int = 56, images: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.rand(images, height, width, channels, generator=torch.Generator().manual_seed(4))


def without_weights() -> None:
    for folder in ("controlnet", "annotators"):
        shutil.rmtree(MODELS / folder / "hed", ignore_errors=True)


def write_weights(place: Path = MODELS / "controlnet" / "hed") -> torch.nn.Module:
    """The network with random weights, in float16 as published."""
    torch.manual_seed(9)
    network = pack("pixart.control").HED().eval().half()
    network.norm.data.uniform_(90, 130)
    place.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), place / NAME)
    return network.float()


def is_image(found: torch.Tensor, images: int, height: int, width: int) -> bool:
    return (found.shape == (images, height, width, 3) and found.dtype == torch.float32
            and found.device == comfy.model_management.intermediate_device()
            and bool((found >= 0).all() and (found <= 1).all()) and torch.equal(found[..., 0], found[..., 2]))


def test_edges_of_images():
    for method in ("canny", "soft", "none", "invert"):
        for channels in (1, 3, 4):
            given = image(channels=channels)
            before = given.clone()
            found = edges(given, method, 0.1, 0.2)
            assert is_image(found, 2, 40, 56) and found.std() > 0.01
            found.add_(1)
            assert torch.equal(given, before)


def test_edges_at_the_size_of_the_final_image():
    for width, height, want in ((64, 64, (64, 64)), (112, 0, (80, 112)), (0, 20, (20, 28))):
        assert is_image(edges(image(), "soft", width=width, height=height), 2, *want)


def test_thresholds_are_those_of_the_stock_canny_node():
    import nodes
    given = image(64, 64, channels=1)
    stock = nodes.NODE_CLASS_MAPPINGS["Canny"].detect_edge(given, 0.4, 0.8)[0]
    assert stock.mean() > 0.02
    assert (edges(given, "canny") != stock).float().mean() < 0.002      # rounding; all but equal slopes side by side


def test_wrong_thresholds_are_refused():
    assert "low <= high" in refusal(edges, image(), "canny", 0.9, 0.2)


def test_without_weights_the_node_is_there_and_says_what_to_get():
    without_weights()
    node = pack("nodes.edges").PixArtHED
    listed = node.INPUT_TYPES()["required"]["file"][0]
    assert listed == ["no file found"]
    for file in (listed[0], NAME, "../secret.pth"):
        shown = node.VALIDATE_INPUTS(file)
        assert NAME in shown and "controlnet or annotators" in shown
        message = refusal(hed, image(), file)
        assert NAME in message and str(MODELS / "controlnet") in message and str(MODELS / "annotators") in message
    assert node.VALIDATE_INPUTS(None) is True


def test_weights_are_found_where_people_keep_them():
    node = pack("nodes.edges").PixArtHED
    kept = Path(folder_paths.get_folder_paths("custom_nodes")[0]) / "comfyui_controlnet_aux" / "ckpts"
    fingerprints = set()
    try:
        for root in (MODELS / "controlnet", MODELS / "annotators", kept):
            without_weights()
            write_weights(root / "hed")
            assert node.INPUT_TYPES()["required"]["file"][0] == [f"hed/{NAME}"]
            assert node.VALIDATE_INPUTS(f"hed/{NAME}") is True
            assert pack("nodes.host.folders").hed_path(f"hed/{NAME}") == root / "hed" / NAME
            fingerprints.add(node.IS_CHANGED(f"hed/{NAME}", width=0))
    finally:
        shutil.rmtree(kept.parent)
        folder_paths.folder_names_and_paths["annotators"][0].remove(str(kept))      # the host watches what it listed
        folder_paths.filename_list_cache.pop("annotators")
    assert len(fingerprints) == 3


def test_hed_of_images_is_that_of_the_network():
    network = write_weights()
    given = image()
    before = given.clone()
    found = hed(given, f"hed/{NAME}")
    want = network(given.movedim(-1, 1) * 255).movedim(1, -1)
    assert is_image(found, 2, 40, 56) and (found - want).abs().max() < 1e-5
    assert is_image(hed(image(channels=4), f"hed/{NAME}"), 2, 40, 56)
    assert is_image(hed(given, f"hed/{NAME}", width=64, height=32), 2, 32, 64)
    assert torch.equal(given, before)


def test_another_file_is_refused_by_its_name():
    write_weights()
    other = MODELS / "controlnet" / "hed" / "control_hed.safetensors"
    shutil.copy(MODELS / "diffusion_models" / "alpha-512.safetensors", other)
    message = refusal(hed, image(), "hed/control_hed.safetensors")
    assert "control_hed.safetensors" in message and NAME in message
    without_weights()


def test_a_batch_reports_progress_and_can_be_interrupted():
    with heard_progress() as heard:
        edges(image(images=3))
        assert heard[0] == (1, 3) and heard[-1] == (3, 3)       # newer hosts leave out what follows too quickly
        assert stopped_by_the_user(edges, image(images=3))

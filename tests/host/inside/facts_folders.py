"""The bundled models in the host's lists."""
import shutil
from pathlib import Path

import folder_paths
from support import MODELS, node, pack


def bundled() -> Path:
    """A folder laid out as pixart/mini/weights, with tiny files. It stays: the host watches the folders it listed."""
    root = MODELS.parent / "bundled"
    if not root.exists():
        for category, source in (("vae", "vae/tiny-vae.safetensors"), ("text_encoders", "text_encoders/tiny-t5"),
                                 ("diffusion_models", "diffusion_models/alpha-1024.safetensors")):
            place = root / category / "pixart-mini"
            place.mkdir(parents=True)
            path = MODELS / source
            (shutil.copytree if path.is_dir() else shutil.copy)(path, place / path.name)
        (root / "judge.safetensors").write_bytes(b"not for the lists")
    pack("nodes.host.folders").register_bundled(root)
    return root


def test_bundled_models_are_listed_beside_the_others():
    before = {name: folder_paths.get_folder_paths(name) for name in ("vae", "text_encoders", "diffusion_models")}
    listed = set(folder_paths.get_filename_list("vae"))
    root = bundled()
    for name, paths in before.items():
        assert folder_paths.get_folder_paths(name)[:len(paths)] == paths
    assert set(folder_paths.get_filename_list("vae")) >= listed | {"pixart-mini/tiny-vae.safetensors"}
    assert "pixart-mini/alpha-1024.safetensors" in node("PixArtLoader").INPUT_TYPES()["required"]["file"][0]
    assert "pixart-mini/tiny-t5" in node("PixArtT5Loader").INPUT_TYPES()["required"]["file"][0]
    assert not any("judge" in name for name in folder_paths.get_filename_list("diffusion_models"))
    _, report = node("PixArtLoader")().load("pixart-mini/alpha-1024.safetensors", "auto", "fp32")
    assert "PixArt-alpha 1024" in report
    node("PixArtT5Loader")().load("pixart-mini/tiny-t5", "16", "cpu")
    pack("nodes.host.folders").register_bundled(root)
    assert len(folder_paths.get_folder_paths("vae")) == len(set(folder_paths.get_folder_paths("vae")))


def test_a_replaced_file_is_loaded_anew():
    loader, path = node("PixArtLoader"), MODELS / "diffusion_models" / "replaced.safetensors"
    shutil.copy(MODELS / "diffusion_models" / "alpha-512.safetensors", path)
    first = loader.IS_CHANGED("replaced.safetensors")
    assert loader.IS_CHANGED("replaced.safetensors", variant="auto") == first
    shutil.copy(MODELS / "diffusion_models" / "sigma-1024.safetensors", path)
    assert loader.IS_CHANGED("replaced.safetensors") != first
    assert node("PixArtT5Loader").IS_CHANGED("tiny-t5")

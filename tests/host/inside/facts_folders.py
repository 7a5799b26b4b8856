"""Model files: the bundled ones in the lists, linked, missing and changed ones, ids that another pack has."""
import asyncio
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import folder_paths
from support import MODELS, node, pack

# Nodes that ask the host to look at files before they run, with the input that names these.
LOADERS = {"PixArtLoader": ["file"], "PixArtT5Loader": ["file"], "PixArtControlNetLoader": ["file"],
           "PixArtDeltaLoraLoader": ["file"], "PixArtHED": ["file"], "PixArtTrain": ["folder"]}


@contextmanager
def registered() -> Iterator[None]:
    """The pack's nodes where the host looks for them."""
    import nodes
    nodes.NODE_CLASS_MAPPINGS.update(pack().NODE_CLASS_MAPPINGS)
    try:
        yield
    finally:
        for name in pack().NODE_CLASS_MAPPINGS:
            del nodes.NODE_CLASS_MAPPINGS[name]


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
    assert not any("judge" in name for name in node("PixArtLoader").INPUT_TYPES()["required"]["file"][0])
    for category in ("diffusion_models", "text_encoders", "controlnet"):     # stock loaders would fail on these
        assert not any("pixart-mini" in name for name in folder_paths.get_filename_list(category)), category
    _, report = node("PixArtLoader")().load("pixart-mini/alpha-1024.safetensors", "auto", "fp32")
    assert "PixArt-alpha 1024" in report
    node("PixArtT5Loader")().load("pixart-mini/tiny-t5", "16", "cpu")
    pack("nodes.host.folders").register_bundled(root)
    assert len(folder_paths.get_folder_paths("vae")) == len(set(folder_paths.get_folder_paths("vae")))


def test_t5_is_found_where_comfyui_extramodels_kept_it():
    """Workflows saved with that extension name files of models/t5, and its users have their T5 there."""
    loader, place = node("PixArtT5Loader"), MODELS / "t5"
    assert "former-t5" not in loader.INPUT_TYPES()["required"]["file"][0]
    assert "t5" not in folder_paths.folder_names_and_paths      # no folder of that kind on the page of other users
    shutil.copytree(MODELS / "text_encoders" / "tiny-t5", place / "former-t5")
    try:
        assert {"former-t5", "former-t5/model.safetensors"} <= set(loader.INPUT_TYPES()["required"]["file"][0])
        assert loader.VALIDATE_INPUTS("former-t5\\model.safetensors") is True
        loader().load("former-t5/model.safetensors", "16", "cpu")
        assert "text_encoders or t5" in loader.VALIDATE_INPUTS("gone.safetensors")
    finally:
        shutil.rmtree(place)
        del folder_paths.folder_names_and_paths["t5"]
        folder_paths.filename_list_cache.pop("t5", None)


def test_a_replaced_file_is_loaded_anew():
    loader, path = node("PixArtLoader"), MODELS / "diffusion_models" / "replaced.safetensors"
    shutil.copy(MODELS / "diffusion_models" / "alpha-512.safetensors", path)
    first = loader.IS_CHANGED("replaced.safetensors")
    assert loader.IS_CHANGED("replaced.safetensors", variant="auto") == first
    shutil.copy(MODELS / "diffusion_models" / "sigma-1024.safetensors", path)
    assert loader.IS_CHANGED("replaced.safetensors") != first
    assert node("PixArtT5Loader").IS_CHANGED("tiny-t5")


def test_what_is_read_with_a_file_counts_as_the_file():
    folder, loader = MODELS / "diffusion_models" / "settings", node("PixArtLoader")
    folder.mkdir(exist_ok=True)
    for name in ("whole.safetensors", "part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"):
        (folder / name).write_bytes(b"1")

    def changes(name: str, written: str) -> bool:
        before = loader.IS_CHANGED(f"settings/{name}")
        (folder / written).write_bytes(b"another")
        return loader.IS_CHANGED(f"settings/{name}") != before
    for name in ("whole.safetensors", "part-00001-of-00002.safetensors"):
        assert changes(name, "config.json")
        assert not changes(name, "other.json")
        (folder / "config.json").unlink()
    assert changes("part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors")
    assert changes("part-00001-of-00002.safetensors", "part.safetensors.index.json")
    assert not changes("whole.safetensors", "part-00001-of-00002.safetensors")
    shutil.rmtree(folder)


def test_a_replaced_file_is_noticed_where_the_host_keeps_no_results():
    """It asks no node whether it changed then (--cache-none), so the comparison of images does."""
    import nodes
    path = MODELS / "diffusion_models" / "replaced.safetensors"
    graph = {"1": {"class_type": "PixArtLoader", "inputs": {"file": path.name, "variant": "auto"}},
             "2": {"class_type": "ModelComputeDtype", "inputs": {"model": ["1", 0], "dtype": "fp32"}},
             "3": {"class_type": "PixArtCompare", "inputs": {"model": ["2", 0]}}}
    origin = pack("nodes.host.compare").origin_of
    found = []
    with patch.dict(nodes.NODE_CLASS_MAPPINGS, {"PixArtLoader": node("PixArtLoader")}):
        for name in ("alpha-512", "alpha-512", "sigma-1024"):
            shutil.copy2(MODELS / "diffusion_models" / f"{name}.safetensors", path)
            found.append(origin(graph, "3", ("model",)))
        linked = {**graph, "1": {"class_type": "PixArtLoader", "inputs": {"file": ["4", 0]}},
                  "4": {"class_type": "PrimitiveString", "inputs": {"value": path.name}}}
        assert origin(linked, "3", ("model",)) == origin(linked, "3", ("model",))
    assert found[0] == found[1] != found[2]


def is_changed(kind: str, **inputs: object) -> object:
    """What the host finds for a node of a prompt before it runs it."""
    import execution
    from comfy_execution.graph import DynamicPrompt
    prompt = DynamicPrompt({"1": {"class_type": kind, "inputs": inputs}, "2": {"class_type": "SomeNode", "inputs": {}}})
    return asyncio.run(execution.IsChangedCache("prompt", prompt, None).get("1"))


def test_a_linked_file_does_not_rerun_its_loader():
    with registered():
        for kind, given in LOADERS.items():
            first, again = (is_changed(kind, **{name: ["2", 0] for name in given}) for _ in range(2))
            assert first == again and not any(first[0].strip(";")), kind


def test_a_missing_file_does_not_raise_before_it_is_loaded():
    with registered():
        for kind in LOADERS:
            if kind != "PixArtTrain":
                assert is_changed(kind, file="gone.safetensors") == is_changed(kind, file="gone.safetensors")


def test_a_file_is_found_under_the_separators_of_windows():
    folder = MODELS / "loras" / "from windows"
    folder.mkdir(exist_ok=True)
    shutil.copy(MODELS / "loras" / "tiny-lora.safetensors", folder / "named.safetensors")
    assert pack("nodes.host.folders").lora_path("from windows\\named.safetensors") == folder / "named.safetensors"
    assert node("PixArtDeltaLoraLoader").VALIDATE_INPUTS("from windows\\named.safetensors") is True
    assert node("PixArtDeltaLoraLoader").VALIDATE_INPUTS("from windows/named.safetensors") is True
    assert node("PixArtDeltaLoraLoader").VALIDATE_INPUTS("..\\loras\\tiny-lora.safetensors") is not True


def test_suffixes_of_any_case_are_offered():
    for name in ("upper.SAFETENSORS", "short.sft"):
        shutil.copy(MODELS / "diffusion_models" / "alpha-512.safetensors", MODELS / "diffusion_models" / name)
        try:
            folder_paths.filename_list_cache.pop("diffusion_models", None)
            assert name in node("PixArtLoader").INPUT_TYPES()["required"]["file"][0]
        finally:
            (MODELS / "diffusion_models" / name).unlink()


def test_what_the_page_shows_of_a_missing_file_needs_no_escaping():
    """The page escapes these texts twice, so no quotes, slashes or paths may be in them."""
    for kind in LOADERS:
        if kind != "PixArtTrain":
            for name in ("some where\\gone.safetensors", "some where/gone.safetensors", "no file found"):
                text = node(kind).VALIDATE_INPUTS(name)
                assert not set(text) & set("'\"/\\<>&`"), text
                assert "model folder" in text and len(text.partition(" folder")[0]) < 80, text
            assert node(kind).VALIDATE_INPUTS(None) is True


def test_the_former_id_of_the_lora_loader_is_left_to_another_pack():
    """ComfyUI_ExtraModels has a node of that id; which pack comes first depends on the names of their folders."""
    import nodes

    class Another:
        pass

    usual = nodes.NODE_CLASS_MAPPINGS.pop("PixArtLoraLoader", None)
    try:
        assert "PixArtLoraLoader" in imported_anew().NODE_CLASS_MAPPINGS
        nodes.NODE_CLASS_MAPPINGS["PixArtLoraLoader"] = Another
        mappings = imported_anew()
        assert "PixArtLoraLoader" not in mappings.NODE_CLASS_MAPPINGS
        assert "PixArtLoraLoader" not in mappings.NODE_DISPLAY_NAME_MAPPINGS
        assert "PixArtDeltaLoraLoader" in mappings.NODE_CLASS_MAPPINGS
    finally:
        nodes.NODE_CLASS_MAPPINGS.pop("PixArtLoraLoader")
        if usual:
            nodes.NODE_CLASS_MAPPINGS["PixArtLoraLoader"] = usual


def imported_anew() -> ModuleType:
    """The menu, as the host would import it now."""
    menu = pack("nodes")
    spec = importlib.util.spec_from_file_location(menu.__name__, menu.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_new_nodes_begin_with_files_of_pixart_that_go_together():
    folders = pack("nodes.host.folders")
    mini = {"diffusion_models": ["pixart-mini/lcm.safetensors"], "text_encoders": ["pixart-mini/t5/model.safetensors"],
            "controlnet": ["pixart-mini/edges.safetensors"], "loras": ["pixart-mini/dmd.safetensors"]}
    others = {"checkpoints": ["dreamshaper.safetensors"], "diffusion_models": ["flux1-dev.safetensors"],
              "text_encoders": ["clip_l.safetensors", "umt5_xxl.safetensors", "t5xxl_fp16.safetensors"],
              "controlnet": ["control_v11p_sd15_canny.pth"], "loras": ["add_detail.safetensors"]}
    pixart = {"diffusion_models": ["PixArt-XL-2-1024-ControlNet.pth", "PixArt-XL-2-1024-MS.pth"],
              "controlnet": ["PixArt-XL-2-512-ControlNet.pth"], "loras": ["PixArt-LCM-LoRA.safetensors"]}

    def begins_with(*installed: dict[str, list[str]]) -> list[str]:
        files = {name: [file for each in installed for file in each.get(name, [])]
                 for name in ("checkpoints", *mini)}
        kinds = ("PixArtLoader", "PixArtT5Loader", "PixArtControlNetLoader", "PixArtDeltaLoraLoader")
        with patch.object(folders, "_files_of", lambda category: files[category]):
            declared = [node(kind).INPUT_TYPES()["required"]["file"] for kind in kinds]
        assert all(options["default"] in names for names, options in declared)
        return [options["default"] for _, options in declared]

    of_mini = ["pixart-mini/lcm.safetensors", "pixart-mini/t5", "pixart-mini/edges.safetensors",
               "pixart-mini/dmd.safetensors"]
    assert begins_with(mini) == of_mini
    assert begins_with(others, mini) == of_mini
    assert begins_with(others, pixart, mini) == ["PixArt-XL-2-1024-MS.pth", "t5xxl_fp16.safetensors",
                                                 "PixArt-XL-2-512-ControlNet.pth", "PixArt-LCM-LoRA.safetensors"]

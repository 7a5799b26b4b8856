"""Where model files lie: the host's folders, with the bundled PixArt-mini among them."""
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...pixart.control.hed import HED_FILE

# Bundled files in the folders of the host's own layout: <category>/pixart-mini/<file>, so that their names begin with
# pixart-mini/ in every list.
BUNDLED = Path(__file__).resolve().parents[2] / "pixart" / "mini" / "weights"
MODEL_FOLDERS = ("diffusion_models", "checkpoints")
TEXT_FOLDERS = ("text_encoders",)
FORMER_TEXT_FOLDER = "t5"               # where ComfyUI_ExtraModels asked for T5
HED_FOLDERS = ("controlnet", "annotators")
LORA_FOLDERS = ("loras",)
REWARD_FOLDERS = ("rewards",)
CONTROL_FOLDERS = ("controlnet", *MODEL_FOLDERS)        # published ControlNets come with their base model
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".sft")
READ_BY_STOCK_LOADERS = ("vae",)
SETTINGS = "config.json"                # beside weights of Hugging Face
SCHEDULE_FOLDER = "pixart_schedules"
PROMPT_FOLDER = "pixart_prompts"
NONE_FOUND = "no file found"
_bundled: list[Path] = []
PUT_MODEL_THERE = "Put it there and press R on the page to refresh the lists."


class MissingFile(FileNotFoundError):
    """No file of this name in the folders where it was looked for. `short` names no path: the page escapes these."""

    def __init__(self, found: str, todo: str, short: str) -> None:
        super().__init__(f"{found}. {todo}")
        self.short = short


def register_bundled(root: Path = BUNDLED) -> None:
    """Offer the bundled models: all of them in this pack's lists, in the host's only what its own loaders can read.

    A stock loader that met a transformer or T5 of this size would end in a long traceback.
    """
    if not hosted():
        return
    import folder_paths
    if root not in _bundled:
        _bundled.append(root)
    for category in READ_BY_STOCK_LOADERS:
        if (root / category / "pixart-mini").is_dir():
            folder_paths.add_model_folder_path(category, str(root / category))


def hosted() -> bool:
    """Whether this runs inside ComfyUI; the nodes can be imported and inspected without."""
    return "folder_paths" in sys.modules or importlib.util.find_spec("folder_paths") is not None


def model_files() -> list[str]:
    """Names that may be PixArt checkpoints, for a combo."""
    return _listed(MODEL_FOLDERS)


def text_encoders() -> list[str]:
    """Names of text encoder files, and of folders with a Hugging Face text encoder, which have a config.json."""
    return _listed(_text_folders(), with_folders=True)


def control_files() -> list[str]:
    """Names that may be PixArt ControlNets: the controlnet folder, and what else says control in its name."""
    names = _listed(CONTROL_FOLDERS[:1]) + [name for name in model_files() if "control" in name.lower()]
    return list(dict.fromkeys(name for name in names if name != NONE_FOUND)) or [NONE_FOUND]


def model_path(name: str) -> Path:
    """Raises FileNotFoundError naming file and folders."""
    return _resolve(name, MODEL_FOLDERS)


def lora_files() -> list[str]:
    """Names that may be PixArt LoRAs; one that peft saved as a folder is the adapter_model file in it."""
    return _listed(LORA_FOLDERS)


def lora_path(name: str) -> Path:
    """Raises FileNotFoundError naming file and folders."""
    return _resolve(name, LORA_FOLDERS)


def lora_config_path(name: str) -> Path:
    """What peft writes beside a LoRA. Raises FileNotFoundError where there is none."""
    path = lora_path(name).with_name("adapter_config.json")
    if not path.is_file():
        raise MissingFile(f"no {path.name} is beside it", f"Looked in {path.parent}.", f"no {path.name} is beside it")
    return path


def control_path(name: str) -> Path:
    """Raises FileNotFoundError naming file and folders."""
    return _resolve(name, CONTROL_FOLDERS)


def text_encoder_path(name: str) -> Path:
    """File or folder. Raises FileNotFoundError naming file and folders."""
    return _resolve(name, _text_folders())


def _text_folders() -> tuple[str, ...]:
    """The host's folder, and models/t5 where there is one or extra_model_paths.yaml names it: T5 has 10 GB, which
    nobody should have to move because another extension wanted it there."""
    if not hosted():
        return TEXT_FOLDERS
    import folder_paths
    place = Path(folder_paths.models_dir) / FORMER_TEXT_FOLDER
    if place.is_dir():
        folder_paths.add_model_folder_path(FORMER_TEXT_FOLDER, str(place))
    known = FORMER_TEXT_FOLDER in folder_paths.folder_names_and_paths
    return (*TEXT_FOLDERS, FORMER_TEXT_FOLDER) if known else TEXT_FOLDERS


def schedule_files() -> list[str]:
    """Names of ECAD's schedule files in models/pixart_schedules; none where there is no such folder."""
    if not hosted():
        return []
    import folder_paths
    _add_folder(SCHEDULE_FOLDER)
    names = map(Path, folder_paths.get_filename_list(SCHEDULE_FOLDER))
    return [name.as_posix() for name in names if name.suffix.lower() == ".json"]


def schedule_path(name: str) -> Path:
    """Raises FileNotFoundError naming file and folder."""
    _add_folder(SCHEDULE_FOLDER)
    return _resolve(name, (SCHEDULE_FOLDER,))


def _add_folder(category: str) -> None:
    """A category of this pack's own, below the host's models."""
    import folder_paths
    folder_paths.add_model_folder_path(category, str(Path(folder_paths.models_dir) / category))


def saved_prompts() -> list[str]:
    """Names of encoded prompts in models/pixart_prompts."""
    if hosted():
        _add_folder(PROMPT_FOLDER)
    return _listed((PROMPT_FOLDER,))


def saved_prompt_path(name: str) -> Path:
    """Raises FileNotFoundError naming file and folder."""
    _add_folder(PROMPT_FOLDER)
    return _resolve(name, (PROMPT_FOLDER,))


def saved_prompt_folder() -> Path:
    """Where they are written."""
    import folder_paths
    _add_folder(PROMPT_FOLDER)
    return Path(folder_paths.get_folder_paths(PROMPT_FOLDER)[0])


def hed_files() -> list[str]:
    """Names that may be the HED edge network: files with "hed" in their name, the published name before others."""
    if hosted():
        _add_annotators()
    names = [name for name in _listed(HED_FOLDERS) if "hed" in Path(name).name.lower()]
    return sorted(names, key=lambda name: Path(name).name != HED_FILE) or [NONE_FOUND]


def hed_path(name: str) -> Path:
    """Raises FileNotFoundError naming the file to get and the folders."""
    import folder_paths
    _add_annotators()
    try:
        return _resolve(name, HED_FOLDERS)
    except MissingFile as error:
        places = " or ".join(folder_paths.get_folder_paths(category)[0] for category in HED_FOLDERS)
        wanted = "no HED weights are there" if name == NONE_FOUND else f"the HED weights {name!r} are not there"
        published = f"{HED_FILE} (lllyasviel on Hugging Face, Annotators, 29 MB)"
        raise MissingFile(wanted, f"Put {published} into {places}, then press R on the page.",
                          f"no HED weights are in a model folder. Get {published} and put it into "
                          f"{' or '.join(HED_FOLDERS)}, then press R on the page.") from error


def reward_path(name: str) -> Path:
    """File or folder in models/rewards. Raises FileNotFoundError naming it and the folder."""
    import folder_paths
    folder_paths.add_model_folder_path(REWARD_FOLDERS[0], str(Path(folder_paths.models_dir) / REWARD_FOLDERS[0]))
    return _resolve(name, REWARD_FOLDERS)


def clip_tokenizer_folder() -> Path | None:
    """CLIP's tokenizer that comes with the host."""
    from comfy import sd1_clip
    folder = Path(inspect.getfile(sd1_clip)).parent / "sd1_tokenizer"
    return folder if (folder / "vocab.json").is_file() else None


def _add_annotators() -> None:
    """models/annotators, and where the preprocessor pack comfyui_controlnet_aux keeps what it downloaded."""
    import folder_paths
    aux = [Path(root) / "comfyui_controlnet_aux" / "ckpts" for root in folder_paths.get_folder_paths("custom_nodes")]
    for place in (Path(folder_paths.models_dir) / "annotators", *filter(Path.is_dir, aux)):
        folder_paths.add_model_folder_path("annotators", str(place))


def tokenizer_folder() -> Path | None:
    """The T5 tokenizer that comes with the host, for encoder files that lie without one."""
    from comfy import sd1_clip
    folder = Path(inspect.getfile(sd1_clip)).parent / "text_encoders" / "t5_tokenizer"
    return folder if (folder / "tokenizer.json").is_file() else None


def changed(name: str | None, path_of: Callable[[str], Path]) -> str:
    """The IS_CHANGED value of a file: a new one whenever the file changes.

    A linked name arrives as None, because it is not known yet; then only the node that makes the name decides. An error
    here would run the node, and everything after it, every time.
    """
    if name is None:
        return ""
    try:
        return file_fingerprint(path_of(name))
    except MissingFile:
        return "missing"        # which the node itself says when it runs


def deleted(name: str | None, place_of: Callable[[str], Path]) -> float | str:
    """The IS_CHANGED value of a node whose result is a file: nan, which equals nothing, where the file is gone. The
    host would reuse the result of the last run."""
    try:
        return "" if name is None or place_of(name.strip()).exists() else math.nan
    except ValueError:
        return ""               # no name at all, which the node itself says when it runs


def is_there(name: str | None, path_of: Callable[[str], Path]) -> bool | str:
    """The VALIDATE_INPUTS result for a file: True, or what is wrong. In place of the host's comparison with its list.

    So a workflow of Windows, whose names have backslashes, opens elsewhere too, and the message says where files go.
    """
    if name is None:            # linked
        return True
    try:
        path_of(name)
    except MissingFile as error:
        return error.short
    return True


def file_fingerprint(path: Path) -> str:
    """Changes when the file does, or what is read with it; cheap enough to ask before every run."""
    files = [path, *read_with(path)] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return ";".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


def read_with(path: Path) -> list[Path]:
    """The settings beside a file of weights, and the other shards of its set with their index."""
    from ...pixart.weights.locate import SHARD_NAME
    shard = SHARD_NAME.fullmatch(path.name)
    others = sorted(path.parent.iterdir()) if shard else [path.with_name(SETTINGS)]
    stem = shard["stem"] if shard else ""
    return [file for file in others if file != path and file.is_file()
            and (file.name == SETTINGS or file.name.startswith(stem))]


def _listed(categories: tuple[str, ...], with_folders: bool = False) -> list[str]:
    if not hosted():
        return [NONE_FOUND]
    names: dict[str, None] = {}
    for category in categories:
        files = _files_of(category)
        if with_folders:
            names.update(dict.fromkeys(_hugging_face_folders(category, files)))
        names.update(dict.fromkeys(files))
    return list(names) or [NONE_FOUND]


def _files_of(category: str) -> list[str]:
    """Names below the folders of a category, with / on Windows too, so that workflows travel."""
    import folder_paths
    listed = map(Path, folder_paths.get_filename_list(category))
    bundled = (file.relative_to(root / category) for root in _bundled
               for file in sorted((root / category).rglob("*")))
    return [path.as_posix() for path in dict.fromkeys((*listed, *bundled)) if path.suffix.lower() in WEIGHT_FILES]


def _roots(categories: Sequence[str]) -> list[Path]:
    """Where files of these categories lie, the host's folders before the bundled models."""
    import folder_paths
    places = [Path(place) for category in categories for place in folder_paths.get_folder_paths(category)]
    return list(dict.fromkeys([*places, *(root / category for root in _bundled for category in categories)]))


def _hugging_face_folders(category: str, files: list[str]) -> list[str]:
    """Folders of weight files that have a config.json beside these, by the names the host would give them."""
    folders = dict.fromkeys(Path(name).parent for name in files if Path(name).parent != Path("."))
    return [folder.as_posix() for folder in folders
            if any((root / folder / "config.json").is_file() for root in _roots([category]))]


def _resolve(name: str, categories: Sequence[str]) -> Path:
    """The first path that exists; a name may have the separators of Windows."""
    roots = _roots(categories)
    for spelled in map(Path, dict.fromkeys((name, name.replace("\\", "/")))):
        inside = name != NONE_FOUND and spelled.parts and not spelled.is_absolute() and ".." not in spelled.parts
        found = next((root / spelled for root in roots if inside and (root / spelled).exists()), None)
        if found is not None:
            return found
    raise _missing(name, categories, roots)


def _missing(name: str, categories: Sequence[str], roots: Sequence[Path]) -> MissingFile:
    kinds, places = " or ".join(dict.fromkeys(categories)), " and ".join(map(str, roots))
    if name == NONE_FOUND:
        return MissingFile("there is no file to choose from", f"{PUT_MODEL_THERE} Looked in {places}.",
                           f"no file is in the model folder {kinds}. {PUT_MODEL_THERE}")
    leaf = name.replace("\\", "/").rpartition("/")[2]
    return MissingFile(f"the file {name!r} is not there", f"{PUT_MODEL_THERE} Looked in {places}.",
                       f"{leaf} is not in the model folder {kinds}. {PUT_MODEL_THERE}")

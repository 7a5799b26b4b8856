"""A training as a user requests it in the host, and its files."""
from dataclasses import dataclass
from pathlib import Path

from ..file_names import checked_name

FOLDERS = {"lora": "loras", "lcm-lora": "loras", "controlnet": "controlnet"}      # of the host, for what is trained


@dataclass(frozen=True)
class TrainingWish:
    """What the user set on the node."""

    method: str
    name: str
    steps: int
    batch: int
    learning_rate: float
    rank: int
    blocks: int
    guidance: float
    edges: str
    resolution: str
    save_memory: bool
    start_seed: int
    preview_prompt: str
    preview_every: int

    def __post_init__(self) -> None:
        checked_name(self.name)

    @property
    def file(self) -> Path:
        """Where the trained weights go."""
        import folder_paths
        return Path(folder_paths.get_folder_paths(FOLDERS[self.method])[0]) / f"{self.name}.safetensors"

    @property
    def run(self) -> Path:
        """The folder of the state to go on from, of prepared data and of previews."""
        import folder_paths
        return Path(folder_paths.get_output_directory()) / "pixart-train" / f"{self.name} ({self.method})"

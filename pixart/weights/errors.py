"""What a user reads when a file cannot be used: what was found, what was expected, what to do, which file."""
from pathlib import Path

PIXART_FILE = "a PixArt transformer (.pth, .safetensors or a diffusers folder)"


class CheckpointError(ValueError):
    """A file that is not what was asked for. `found`, `expected`, `todo` and `path` are its parts."""

    def __init__(self, path: Path | str, found: str, expected: str = PIXART_FILE, todo: str = "") -> None:
        super().__init__(f"{found}. Expected {expected}." + (f" {todo}" if todo else "") + f" File: {path}")
        self.path, self.found, self.expected, self.todo = Path(path), found, expected, todo

    def __reduce__(self) -> tuple[type["CheckpointError"], tuple[Path, str, str, str]]:
        """Pickled by its parts, so that it arrives whole from a worker process."""
        return type(self), (self.path, self.found, self.expected, self.todo)


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """There is nothing at this path, or a folder without weights."""

    def __str__(self) -> str:
        return str(self.args[0])

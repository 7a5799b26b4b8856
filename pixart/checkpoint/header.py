"""The configuration that our own files carry in their safetensors header, as JSON under `pixart_config`."""
import json
from dataclasses import asdict
from pathlib import Path

from ..config import KVCompression, PixArtConfig
from .errors import CheckpointError

KEY = "pixart_config"


def to_header(config: PixArtConfig) -> dict[str, str]:
    """The metadata entry that `from_header` reads."""
    return {KEY: json.dumps(asdict(config))}


def from_header(metadata: dict[str, str], path: Path) -> PixArtConfig | None:
    """The configuration in a safetensors header, None where there is none."""
    if KEY not in metadata:
        return None
    try:
        fields = json.loads(metadata[KEY])
        compression = fields.get("kv_compression")
        if compression is not None:
            fields["kv_compression"] = KVCompression(**{**compression, "layers": tuple(compression["layers"])})
        return PixArtConfig(**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"its {KEY} cannot be used ({error})", "the fields of PixArtConfig",
                              "It may come from a newer version; update, or pass a PixArtConfig as variant.") from error

"""The published files of the family: where they are, how large, under which licence, and in which model folder they go.

Licences are those that the model cards state. Hashes are those that the hub shows for the file; where the table has
none, the one that the hub sends with the download is taken.
"""
from dataclasses import dataclass

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class PublishedFile:
    """A file on the hub. bytes is rounded to the published figure where the exact one is not known."""

    name: str                   # what a person asks for
    repo: str                   # owner/name on the hub
    path: str                   # in the repository
    folder: str                 # below ComfyUI's models
    saved_as: str
    bytes: int
    licence: str
    about: str
    sha256: str | None = None

    def url(self, endpoint: str = HUB) -> str:
        """Where it is fetched from; `endpoint` may be a mirror of the hub."""
        return f"{endpoint.rstrip('/')}/{self.repo}/resolve/main/{self.path}"

    def page_entry(self) -> dict[str, str]:
        """What `properties.models` of a workflow's loader says, from which ComfyUI's page offers what is missing."""
        entry = {"name": self.saved_as, "url": self.url(), "directory": self.folder}
        return entry if self.sha256 is None else {**entry, "hash": self.sha256, "hash_type": "SHA256"}


OPENRAIL, OPENRAIL_PP = "openrail", "openrail++"
UNSTATED = "none stated"
ALPHA_REPO, SIGMA_REPO = "PixArt-alpha/PixArt-alpha", "PixArt-alpha/PixArt-Sigma"
CONTROL_REPO = "PixArt-alpha/PixArt-ControlNet"
T5 = "comfyanonymous/flux_text_encoders"
DIFFUSERS = "transformer/diffusion_pytorch_model"
MODEL_FOLDER, LORA_FOLDER, ENCODER_FOLDER = "diffusion_models", "loras", "text_encoders"


def same_name(name: str, repo: str, path: str, folder: str, size: int, licence: str, about: str,
              sha256: str | None = None) -> PublishedFile:
    """Saved under its own name."""
    return PublishedFile(name, repo, path, folder, path.rpartition("/")[2], size, licence, about, sha256)


FILES = (
    same_name("alpha-256", ALPHA_REPO, "PixArt-XL-2-256x256.pth", MODEL_FOLDER, 2_450_000_000, OPENRAIL_PP,
              "alpha, 256 px"),
    PublishedFile("alpha-256-sam", "PixArt-alpha/PixArt-XL-2-SAM-256x256", f"{DIFFUSERS}.safetensors", MODEL_FOLDER,
                  "PixArt-XL-2-SAM-256x256.safetensors", 2_440_000_000, "creativeml-openrail-m",
                  "alpha, 256 px, before fine-tuning",
                  "1411327b1d77289af76d6fd3ea58767beca94954008cbf5ca9894832c655ca51"),
    same_name("alpha-512", ALPHA_REPO, "PixArt-XL-2-512x512.pth", MODEL_FOLDER, 2_450_000_000, OPENRAIL_PP,
              "alpha, 512 px"),
    same_name("alpha-1024", ALPHA_REPO, "PixArt-XL-2-1024-MS.pth", MODEL_FOLDER, 2_470_000_000, OPENRAIL_PP,
              "alpha, 1024 px, all shapes"),
    PublishedFile("dmd-512", "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512", f"{DIFFUSERS}.bin", MODEL_FOLDER,
                  "PixArt-Alpha-DMD-XL-2-512x512.bin", 2_440_000_000, OPENRAIL, "alpha in one step, 512 px"),
    PublishedFile("delta-1024", "PixArt-alpha/PixArt-LCM-XL-2-1024-MS", f"{DIFFUSERS}.safetensors", MODEL_FOLDER,
                  "PixArt-LCM-XL-2-1024-MS.safetensors", 2_450_000_000, OPENRAIL_PP, "delta (LCM), 1024 px, 4 steps"),
    PublishedFile("lcm-lora-1024", "PixArt-alpha/PixArt-LCM-LoRA-XL-2-1024-MS", "adapter_model.safetensors",
                  LORA_FOLDER, "PixArt-LCM-LoRA-XL-2-1024-MS.safetensors", 0, UNSTATED,
                  "LCM-LoRA for alpha 1024; named by the official demo, availability unknown"),
    same_name("control-512", CONTROL_REPO, "PixArt-XL-2-512-ControlNet.pth", "controlnet", 3_630_053_179, UNSTATED,
              "ControlNet of HED edges, for alpha 512",
              "384963acd76941734d2789c0e9d18948570b283d314ae2aae2059f56c9031426"),
    same_name("control-1024", CONTROL_REPO, "PixArt-XL-2-1024-ControlNet.pth", "controlnet", 3_646_185_057, UNSTATED,
              "ControlNet of HED edges, for alpha and delta 1024",
              "97a1ab701a58089e66027e3cad3351c886b8ad83a9f06e4e8001dca6e28f105d"),
    same_name("hed", "lllyasviel/Annotators", "ControlNetHED.pth", "controlnet", 29_400_000, "other",
              "edge detector for the ControlNets", "5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa"),
    same_name("sigma-256", SIGMA_REPO, "PixArt-Sigma-XL-2-256x256.pth", MODEL_FOLDER, 2_450_000_000, OPENRAIL_PP,
              "Sigma, 256 px"),
    same_name("sigma-512", SIGMA_REPO, "PixArt-Sigma-XL-2-512-MS.pth", MODEL_FOLDER, 2_450_000_000, OPENRAIL_PP,
              "Sigma, 512 px, all shapes"),
    same_name("sigma-1024", SIGMA_REPO, "PixArt-Sigma-XL-2-1024-MS.pth", MODEL_FOLDER, 2_467_384_245, OPENRAIL_PP,
              "Sigma, 1024 px, all shapes", "e63941ddc11c9e0bba27e9a0e454d5d959361119849ecfc8981f0488f0d96ff3"),
    same_name("sigma-2k", SIGMA_REPO, "PixArt-Sigma-XL-2-2K-MS.pth", MODEL_FOLDER, 2_524_006_471, OPENRAIL_PP,
              "Sigma, 2048 px, all shapes", "a52964634c6ff25969ae253b5c86f2163eda277145e0067b9a4ae1d20934a767"),
    same_name("t5", T5, "t5xxl_fp16.safetensors", ENCODER_FOLDER, 9_790_000_000, "apache-2.0",
              "text encoder, 16 bits; can be loaded in 8 or 4",
              "6e480b09fae049a72d2a8c5fbccb8d3e92febeb233bbe9dfe7256958a9167635"),
    same_name("t5-tokenizer", "google/t5-v1_1-xxl", "spiece.model", ENCODER_FOLDER, 791_656, "apache-2.0",
              "tokenizer of t5, needed outside of ComfyUI",
              "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"),
    same_name("t5-fp8", T5, "t5xxl_fp8_e4m3fn.safetensors", ENCODER_FOLDER, 4_890_000_000, "apache-2.0",
              "text encoder in float8, for the stock CLIPLoader",
              "7d330da4816157540d6bb7838bf63a0f02f573fc48ca4d8de34bb0cbfd514f09"),
    same_name("vae-alpha", "stabilityai/sd-vae-ft-ema-original", "vae-ft-ema-560000-ema-pruned.safetensors", "vae",
              335_000_000, "mit", "VAE of alpha and delta"),
    same_name("vae-sigma", "stabilityai/sdxl-vae", "sdxl_vae.safetensors", "vae", 335_000_000, "mit",
              "VAE of Sigma; not in float16"),
    PublishedFile("vae-sigma-fp16", "madebyollin/sdxl-vae-fp16-fix", "sdxl_vae.safetensors", "vae",
                  "sdxl_vae_fp16_fix.safetensors", 335_000_000, "mit", "VAE of Sigma, fixed for float16"),
)
BY_NAME = {file.name: file for file in FILES}


def file_table() -> str:
    """All files, a line each."""
    rows = [("NAME", "SIZE", "LICENCE", "FOLDER", "HASH", "WHAT IT IS")]
    rows += [(file.name, size_text(file.bytes), file.licence, file.folder, (file.sha256 or "from hub")[:10],
              file.about) for file in FILES]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[5]]) for row in rows)


def size_text(size: int) -> str:
    """In decimal units, as the hub shows it; "?" for 0."""
    if not size:
        return "?"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"

"""The Python packages that training needs and ComfyUI does not include."""
import importlib.util
import sys

PACKAGES = {"lora": ("accelerate", "peft"), "lcm-lora": ("accelerate", "peft"), "controlnet": ("accelerate",)}


def missing_packages(method: str) -> list[str]:
    """Those of a method that are not installed."""
    return [name for name in PACKAGES[method] if importlib.util.find_spec(name) is None]


def check_packages(method: str) -> None:
    """Raise ImportError with the command that installs what is missing."""
    missing = missing_packages(method)
    if missing:
        raise ImportError(f"training needs {' and '.join(missing)}: pip install {' '.join(missing)}\n"
                          "ComfyUI does not include them. With its own Python:\n"
                          f'    "{sys.executable}" -m pip install {" ".join(missing)}')

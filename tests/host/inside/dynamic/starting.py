"""The host's dynamic VRAM without a GPU: its real package, layers and ModelPatcher, its own reservations left out."""
import torch


def start_memory() -> None:
    """As the host's main does it before anything of the host is imported."""
    import comfy_aimdo.control
    assert comfy_aimdo.control.init()


def start_patchers() -> None:
    """As the host's main does it on a CUDA machine."""
    import comfy.memory_management
    import comfy.model_patcher

    class OnCpu(comfy.model_patcher.ModelPatcherDynamic):
        """The host would make an ordinary patcher for a CPU, and without a GPU there is no memory to reserve."""

        def __new__(cls, *_: object, **__: object) -> "OnCpu":
            return object.__new__(cls)

        def _vbar_get(self, create: bool = False) -> None:
            """CUDA reserves no address range of size 0 (cuMemAddressReserve: invalid value)."""
            if create and self.model_size() == 0:
                raise MemoryError("VBAR allocation failed")

        def partially_unload(self, device_to: torch.device, memory_to_free: float = 0,
                             force_patch_weights: bool = False) -> int:
            return self.restore_loaded_backups()

    comfy.model_patcher.CoreModelPatcher = OnCpu
    comfy.memory_management.aimdo_enabled = True

"""Linear layers in 8 and 4 bits: by bitsandbytes, with its repeated message silenced, or by this package."""
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..quantize.formats import TARGETS
from ..quantize.layer import QuantizedLinear

OUTLIER_THRESHOLD = 6.0        # LLM.int8(): columns of the input with a larger value are multiplied in 16 bits
_CAST_MESSAGE = "MatMul8bitLt: inputs will be cast"
_CAST_LOGGER = "bitsandbytes.autograd._functions"


Bits = int | str
INT8: Bits = "int8"            # 8 bits without bitsandbytes
T5_PRECISIONS: tuple[Bits, ...] = (16, 8, 4, INT8)


def check_bits(bits: Bits) -> None:
    """ValueError that names the precisions there are."""
    if bits not in T5_PRECISIONS:
        raise ValueError(f"T5 can be loaded in {', '.join(map(str, T5_PRECISIONS[:-1]))} bits or {INT8!r}, "
                         f"not {bits!r}")


def usual_bits(device: torch.device) -> Bits:
    """The default for a large T5: 8, and 16 on Apple GPUs, for which bitsandbytes has no kernels."""
    return 16 if device.type == "mps" else 8


def require_bitsandbytes(bits: Bits) -> None:
    """Raises ValueError that says what to install, or to use 16 bits."""
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        raise ValueError(f"T5 in {bits} bits needs bitsandbytes, which cannot be imported ({error}). "
                         "Install it with: pip install -U bitsandbytes   or load T5 in int8 or 16 bits") from error


def quantized_linear(weight: Tensor, bits: Bits, device: torch.device, computed: torch.dtype = torch.bfloat16
                     ) -> nn.Module:
    """A linear layer without bias, of `weight` (out, in) float on the CPU: LLM.int8 for 8 bits, NF4 for 4, else int8.

    int8 rounds weights alone, with one scale a row; the layer can be moved to any device, and computes in the dtype of
    its input. computed: the dtype in which NF4 is dequantised and multiplied; LLM.int8 chooses its own.
    """
    if bits == INT8:
        return QuantizedLinear(TARGETS["int8_tensorwise"].quantize(weight), None).to(device)
    layer = _int8(weight, device) if bits == 8 else _nf4(weight, device, computed)
    if cast(Tensor, layer.weight).is_floating_point():
        raise ValueError(f"this version of bitsandbytes does not quantise on {device.type}; update it with "
                         "pip install -U bitsandbytes, choose another device, or load T5 in 16 bits")
    return layer


def _int8(weight: Tensor, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    layer = Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False,
                         threshold=OUTLIER_THRESHOLD, device="meta")
    layer.weight = cast(Any, Int8Params(weight, requires_grad=False, has_fp16_weights=False)).to(device)
    return layer.eval()


def _nf4(weight: Tensor, device: torch.device, computed: torch.dtype) -> nn.Module:
    """NF4 in blocks of 64 with scales that are quantised too: 4.13 bits a weight."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=computed,
                       compress_statistics=True, quant_type="nf4", device="meta")
    layer.weight = cast(Any, Params4bit(weight.to(torch.bfloat16), requires_grad=False, compress_statistics=True,
                                        quant_type="nf4", module=layer)).to(device)
    return layer.eval()


class _DropCastMessage(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_CAST_MESSAGE)


@contextmanager
def quiet_casts() -> Iterator[None]:
    """Drops the line bitsandbytes writes at every 8-bit product about casting its input, and nothing else."""
    logger, quiet = logging.getLogger(_CAST_LOGGER), _DropCastMessage()
    logger.addFilter(quiet)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_CAST_MESSAGE)
            yield
    finally:
        logger.removeFilter(quiet)

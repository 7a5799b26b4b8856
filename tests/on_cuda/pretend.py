"""A CUDA device that is none: tensors that say they are on cuda:0, refuse what a GPU refuses, and compute on the CPU.

Within `pretended.pretend_cuda()` everything that takes a device takes "cuda". Its tensors hold real numbers, so whole
samplings and trainings run and give what they give on a CPU; what mixes devices raises the error that CUDA raises, and
`Cuda` counts what crosses the bus or makes the program wait. What only silicon shows (memory, speed, kernels) it
cannot.
"""
from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = (f"{ROOT / 'pixart'}", f"{ROOT / 'nodes'}")
GPU = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {"copy_", "_to_copy", "_copy_from", "_foreach_copy_"}
# Take indices or lengths from the CPU as well; CUDA copies them there and waits.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# A number on the CPU is as good as one on the device, but not here.
NO_SCALARS = {"cat", "stack", "mm", "addmm", "bmm", "convolution", "embedding", "native_layer_norm"}
# Their result has as many rows as the data decide, which the program has to be told.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
INTEGER_LESS = {"mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "convolution", "matmul"}
# What CUDA does with 8-bit floating point beside moving it about.
FLOAT8_KNOWN = COPIES | {"view", "slice", "empty_like", "clone", "detach", "t", "transpose", "select", "cat", "alias",
                         "split", "split_with_sizes", "permute", "unsqueeze", "squeeze", "expand", "as_strided",
                         "_unsafe_view", "_reshape_alias", "unbind", "zeros_like", "index", "index_select",
                         "_scaled_mm", "empty_strided", "new_empty_strided", "is_same_size", "fill_", "zero_",
                         "view_dtype"}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Computed in float32 by CUDA's autocast; that of the CPU leaves them in 16 bits.
AUTOCAST_FLOAT32 = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.mse_loss, F.l1_loss, F.smooth_l1_loss,
                    F.cross_entropy, F.nll_loss, F.binary_cross_entropy_with_logits, F.cosine_similarity, F.softplus,
                    F.huber_loss, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, torch.sum,
                    Tensor.sum, torch.prod, Tensor.prod, torch.cumsum, Tensor.cumsum, Tensor.softmax, torch.softmax,
                    torch.rsqrt, Tensor.rsqrt, Tensor.norm, torch.norm, Tensor.reciprocal, Tensor.log_softmax}
AUTOCAST_WIDEST = {torch.cat, torch.stack, torch.addcmul, torch.atan2, torch.cross, torch.dot}
# Copy once and keep the copy, which they do not with tensors that only stand in for others.
CACHES = ("pixart/model/positions.py", "pixart/sampling/schedule.py", "pixart/quantize/rotation.py")
RANDOM = {torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal}


class CudaTensor(Tensor):
    """Says it is on the GPU; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> CudaTensor:
        made = Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype,
                                             storage_offset=held.storage_offset(), layout=held.layout,
                                             device=held.device, requires_grad=requires_grad)
        made.held = held
        return made

    device = property(lambda self: GPU)                         # type: ignore[assignment]
    is_cuda = property(lambda self: True)                       # type: ignore[assignment]
    is_cpu = property(lambda self: False)                       # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict, meta: None, size: Any, stride: Any) -> CudaTensor:
        return CudaTensor(inner["held"])

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) not in memo:
            copy: Tensor = CudaTensor(self.held.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, self.requires_grad)
            memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What torch.load gives back with map_location="cpu"."""
        held = self.held.detach()
        return (torch.nn.Parameter(held, self.requires_grad) if isinstance(self, torch.nn.Parameter)
                else held).__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():       # the device's own work
            check(func, args, kwargs)
            bare_args, bare_kwargs = bare((args, kwargs))
            drawn = torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
            with Cuda.active.random() if drawn else contextlib.nullcontext():
                out = func(*bare_args, **bare_kwargs)
            if func is aten.copy_.default and type(args[0]) is not CudaTensor:
                return args[0]
            return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, CudaTensor, out))


def bare(tree: Any) -> Any:
    return tree_map_only(CudaTensor, lambda t: t.held, tree)


def check(func: Any, args: tuple, kwargs: dict) -> None:
    """Refuse what CUDA refuses; count what makes the program wait."""
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [t for t in tensors if not isinstance(t, CudaTensor)]
    Cuda.active.note_kernel(name, [t for t in tensors if isinstance(t, CudaTensor)])
    if name in WAITING:
        Cuda.active.note("wait", name)
    if name in INDEXING and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
        Cuda.active.note("wait", "index by a mask")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({name})")
    if not here or Cuda.active.backward:
        return
    if name in COPIES:
        Cuda.active.note("upload" if isinstance(args[0], CudaTensor) else "download", name)
    elif name in INDEXING and isinstance(args[0], CudaTensor) and all(isinstance(t, CudaTensor) for t in args[2:3]):
        Cuda.active.note("upload", "index")
    elif name in INDEXING or name in NO_SCALARS or any(t.ndim for t in here):
        shapes = [(tuple(t.shape), t.device.type) for t in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                           f"cpu! ({name}: {shapes})")


class Move(torch.autograd.Function):
    """Between the devices, gradients too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, away: bool) -> Tensor:
        ctx.away = away
        return x.held.detach().clone() if away else CudaTensor(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.away:
            return CudaTensor(grad.clone()), None
        return (grad.held if isinstance(grad, CudaTensor) else grad).clone(), None


def moved(x: Tensor, device: torch.device | None, non_blocking: bool = False) -> Tensor:
    if device is None or device.type == "meta" or device.type == x.device.type:
        return x
    away = isinstance(x, CudaTensor)
    if away and non_blocking:
        raise RuntimeError("a copy to the CPU that is not waited for: its numbers are not there yet when they are read")
    Cuda.active.note("download" if away else "upload", "to")
    return Move.apply(x, away)


def on_gpu(device: Any) -> bool:
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


class Cuda(TorchFunctionMode):
    """The device while it is there: what was asked of it. `sites` tells from where in the repository."""

    active: Cuda

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.sites: Counter[tuple[str, str, str]] = Counter()
        self.doubles: set[str] = set()
        self.backward = False       # torch itself makes zeros there, by the device that the memory of a tensor has
        self.state = torch.Generator().manual_seed(77).get_state()

    def note(self, kind: str, what: str) -> None:
        where = site()
        if not where.startswith(CACHES):
            self.counts[kind] += 1
            self.sites[kind, what, where] += 1

    def forget(self) -> None:
        """Begin to count anew."""
        self.counts.clear()
        self.sites.clear()
        self.doubles.clear()

    @property
    def waits(self) -> int:
        """How often the program stopped until the device had done all its work."""
        return self.counts["wait"] + self.counts["download"]

    @property
    def uploads(self) -> int:
        """Copies to the device."""
        return self.counts["upload"]

    def note_kernel(self, name: str, tensors: list[Tensor]) -> None:
        dtypes = {t.dtype for t in tensors}
        if dtypes & {*FLOAT8} and name not in FLOAT8_KNOWN:
            raise NotImplementedError(f'"{name}" not implemented for \'Float8\' on CUDA')
        if name in INTEGER_LESS and tensors and not tensors[0].dtype.is_floating_point:
            raise NotImplementedError(f'"{name}" not implemented for {tensors[0].dtype} on CUDA')
        if torch.float64 in dtypes:
            self.doubles.add(site())

    @contextlib.contextmanager
    def random(self) -> Iterator[None]:
        """The device has a stream of random numbers of its own."""
        before = torch.random.get_rng_state()
        torch.random.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.random.get_rng_state()
            torch.random.set_rng_state(before)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in (Tensor.backward, torch.autograd.backward, torch.autograd.grad):
            return self.going_back(func, args, kwargs)
        special = getattr(self, f"do_{name}", None)
        if special is not None and args and isinstance(args[0], Tensor):
            return special(func, *args, **kwargs)
        if kwargs.get("device") is not None and func is not Tensor.to:
            return self.made(func, args, kwargs)
        if torch.is_autocast_enabled("cpu"):
            return self.autocast(func, args, kwargs)
        return func(*args, **kwargs)

    def made(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """A tensor made on a device that is named."""
        there, generator = on_gpu(kwargs["device"]), kwargs.get("generator")
        if torch.device(kwargs["device"]).type == "meta":
            return func(*args, **kwargs)
        if generator is not None and (generator.device.type == "cuda") != there:
            raise RuntimeError(f"Expected a {kwargs['device']} device type for generator but found {generator.device}")
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and there and not (
                args and isinstance(args[0], CudaTensor)):
            self.note("upload", "torch.tensor")
        drawn = there and func in RANDOM and generator is None
        with self.random() if drawn else contextlib.nullcontext():
            out = func(*bare(args), **bare({**kwargs, "device": "cpu"}))
        if not there:
            return out
        with torch.no_grad():
            return CudaTensor(out.detach()).requires_grad_(out.requires_grad)

    def autocast(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """CUDA's autocast where it differs from the CPU's."""
        if func in AUTOCAST_FLOAT32 and any(isinstance(t, CudaTensor) for t in args):
            half = (torch.float16, torch.bfloat16)
            args, kwargs = tree_map_only(Tensor, lambda t: t.float() if t.dtype in half else t, (args, kwargs))
            with torch.amp.autocast_mode.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        if func in AUTOCAST_WIDEST:
            floats = [t.dtype for t in tree_leaves(args) if isinstance(t, Tensor) and t.is_floating_point()]
            if len({*floats}) > 1:
                args = tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, args)
            with torch.amp.autocast_mode.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def going_back(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """The backward pass of a forward pass that was looked at; what it recomputes is, once more."""
        if func is Tensor.backward:
            func = torch.autograd.backward
            kwargs["grad_tensors"] = kwargs.pop("gradient", None)
        self.backward = True
        try:
            with self, mock.patch.object(torch.autograd, "has_torch_function", lambda _: False):
                return func(*args, **kwargs)
        finally:
            self.backward = False

    # -- methods that a device answers itself --------------------------------------------------------------------------

    def do_to(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        other = args[0] if args else kwargs.get("other")
        if isinstance(other, Tensor):
            return self.do_to(func, x, other.device, other.dtype)
        device, rest = kwargs.pop("device", None), args
        if args and isinstance(args[0], (str, torch.device, int)):
            device, rest = args[0], args[1:]
        if device is not None:
            device = GPU if isinstance(device, int) else torch.device(device)
            if device.type == "meta":
                return func(bare(x), device)
        non_blocking = kwargs.pop("non_blocking", False)
        there = moved(x, device, non_blocking)
        rest = tuple(part for part in rest[:1] if part is not None)         # the data type; then comes non_blocking
        kwargs = {name: value for name, value in kwargs.items() if value}
        return func(there, *rest, **kwargs) if rest or kwargs else there

    def do_cuda(self, func: Any, x: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
        return moved(x, GPU, non_blocking)

    def do_cpu(self, func: Any, x: Tensor, **kwargs: Any) -> Tensor:
        return moved(x, torch.device("cpu"))

    def do_pin_memory(self, func: Any, x: Tensor, *args: Any) -> Tensor:
        if isinstance(x, CudaTensor):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return x.clone()

    def do_numpy(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, CudaTensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
        return func(x, *args, **kwargs)

    do___array__ = do_numpy

    def do_tolist(self, func: Any, x: Tensor) -> Any:
        if isinstance(x, CudaTensor):
            self.note("wait", "tolist")
        return func(bare(x))

    def do_get_device(self, func: Any, x: Tensor) -> int:
        return 0 if isinstance(x, CudaTensor) else -1

    def do_data_ptr(self, func: Any, x: Tensor) -> Any:
        return func(bare(x))

    do_untyped_storage = do_storage = do_data_ptr


def site() -> str:
    """The innermost line of the product that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        file = os.path.normpath(frame.f_code.co_filename)       # pytest's path has ".." in it
        if file.startswith(PRODUCT):
            return f"{Path(file).relative_to(ROOT).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back            # type: ignore[assignment]
    return "elsewhere"

"""Pickles of torch.save read as data: no function or class that a file names is ever looked up, made or called.

`pickletools` splits the text into opcodes; what they build is limited to plain containers, numbers, texts and
descriptions of tensors. Every other name is refused (pickle's opcodes: pickletools in Python's own documentation).
"""
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

LARGEST_PICKLE = 4 << 20    # bytes of pickle; a training checkpoint with 2,000 tensors has about 0.4 million
MOST_PICKLE_STEPS = 250_000  # opcodes; the same checkpoint has about 100,000
MOST_DIMENSIONS = 8
DAMAGED = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)


class NotWeights(Exception):
    """A pickle that asks for something else than data."""


@dataclass(frozen=True)
class Name:
    """A function or class that a pickle names; only its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:120]


@dataclass(frozen=True)
class StoredStorage:
    """A run of numbers that the pickle refers to: `elements` numbers of `dtype` (bytes where None) under `key`."""

    dtype: torch.dtype | None
    key: str
    elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage, in elements of `dtype`."""

    storage: StoredStorage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Inert:
    """Something harmless that is no weight, such as a training option; its content is not kept."""

    name: str


STORAGES: dict[str, torch.dtype | None] = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": None,
}
TORCH_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values()
                if isinstance(dtype, torch.dtype)}
# Classes of options and counters beside the weights in training checkpoints.
INERT = {("argparse", "Namespace"), ("torch", "device"), ("torch", "Size"), ("collections", "Counter"),
         ("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "scalar"),
         ("numpy._core.multiarray", "scalar"), ("numpy.core.multiarray", "_reconstruct"),
         ("numpy._core.multiarray", "_reconstruct"), ("_codecs", "encode"), ("builtins", "set"), ("__builtin__", "set"),
         ("builtins", "bytearray"), ("__builtin__", "bytearray")}
DICTS = {("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "dict"), ("__builtin__", "dict")}
NUMBER_OPCODES = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
         "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_MARK = object()


def read_pickle(stream: BytesIO) -> object:
    """The next pickle of a stream as plain data. Raises NotWeights for what asks for more, ValueError for damage."""
    machine = _Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if opcode.name == "STOP":
                return machine.pop()
            if step > MOST_PICKLE_STEPS:
                raise ValueError(f"more than {MOST_PICKLE_STEPS} steps")
            machine.step(opcode.name, argument)
    except DAMAGED as error:
        raise ValueError(f"a damaged pickle ({str(error)[:100]})") from error
    raise ValueError("a pickle that does not end")


class _Machine:
    """Stack and memory of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in NUMBER_OPCODES or name in TEXTS:
            self.stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise NotWeights(f"pickle opcode {name}")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"no {kind.__name__} to fill")
        return self.stack[-1]

    def items(self) -> list[Any]:
        """Everything above the last mark."""
        found = []
        while (value := self.stack.pop()) is not _MARK:
            found.append(value)
        return found[::-1]

    def drop(self) -> None:
        """What lies on top; it may be a mark."""
        self.stack.pop()

    def drop_items(self) -> None:
        self.items()

    def tuple_of(self, count: int) -> None:
        values = tuple(self.pop() for _ in range(count))
        self.stack.append(values[::-1])

    def extend(self, values: list[Any]) -> None:
        """Into a list, set or what stands for one of another class."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise ValueError("no list to append to")

    def set_items(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], Inert):
            return
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise NotWeights(f"a table with a {type(key).__name__} for a name")
            target[key] = value

    def fill_in(self, target: object) -> None:
        """A new table or set of everything above the last mark."""
        values = self.items()
        self.stack.append(target)
        self.set_items(values)

    def call(self) -> None:
        """REDUCE: the few calls that mean a tensor or a container."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are not a tuple")
        self.stack.append(rebuilt(function, arguments))

    def build(self) -> None:
        """State of an object: the metadata that torch attaches to state dicts, which is not needed."""
        self.pop()
        if not isinstance(self.stack[-1], (dict, Inert)):
            raise NotWeights("state for something that is not a table")

    def make(self, keywords: bool) -> None:
        """NEWOBJ: an object of a class, which may only be a table or inert."""
        if keywords:
            self.pop()
        self.call()

    def put(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("nothing to remember")
        self.memory[index] = self.stack[-1]

    def persistent(self) -> None:
        self.stack.append(storage(self.pop()))

    def global_name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(resolve_global(module, name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not a text")
        self.stack.append(resolve_global(module, name))


def _constant(value: object) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "NONE": _constant(None), "NEWTRUE": _constant(True), "NEWFALSE": _constant(False), "MARK": _constant(_MARK),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]), "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(Inert("set")),
    "LIST": lambda m, _: m.stack.append(m.items()), "TUPLE": lambda m, _: m.stack.append(tuple(m.items())),
    "TUPLE1": lambda m, _: m.tuple_of(1), "TUPLE2": lambda m, _: m.tuple_of(2), "TUPLE3": lambda m, _: m.tuple_of(3),
    "FROZENSET": lambda m, _: m.fill_in(Inert("frozenset")),
    "APPEND": lambda m, _: m.extend([m.pop()]), "APPENDS": lambda m, _: m.extend(m.items()),
    "ADDITEMS": lambda m, _: m.extend(m.items()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]), "SETITEMS": lambda m, _: m.set_items(m.items()),
    "DICT": lambda m, _: m.fill_in({}),
    "GLOBAL": _Machine.global_name, "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "REDUCE": lambda m, _: m.call(), "BUILD": lambda m, _: m.build(),
    "NEWOBJ": lambda m, _: m.make(False), "NEWOBJ_EX": lambda m, _: m.make(True),
    "BINPERSID": lambda m, _: m.persistent(),
    "PUT": lambda m, at: m.put(at), "BINPUT": lambda m, at: m.put(at), "LONG_BINPUT": lambda m, at: m.put(at),
    "MEMOIZE": lambda m, _: m.put(len(m.memory)),
    "GET": lambda m, at: m.stack.append(m.memory[at]), "BINGET": lambda m, at: m.stack.append(m.memory[at]),
    "LONG_BINGET": lambda m, at: m.stack.append(m.memory[at]),
    "POP": lambda m, _: m.drop(), "POP_MARK": lambda m, _: m.drop_items(),
    "DUP": lambda m, _: m.stack.append(m.top(object)),
}


def resolve_global(module: str, name: str) -> object:
    """What a name in a pickle stands for. Raises NotWeights for every name that weights do not need."""
    if module in ("torch", "torch.storage") and name in STORAGES:
        return Name("torch", name)
    if module == "torch" and name in TORCH_DTYPES:
        return TORCH_DTYPES[name]
    known = (module, name) in INERT or (module, name) in DICTS or (module, name) in REBUILDERS
    if not known and (module, name) not in TENSOR_CLASSES:
        raise NotWeights(str(Name(module, name)))
    return Name(module, name)


def storage(description: object) -> StoredStorage:
    """A persistent id of torch.save: ("storage", class, key, device, number of elements), older files with a sixth."""
    if not isinstance(description, tuple) or len(description) not in (5, 6) or description[0] != "storage":
        raise NotWeights("a reference that is not a storage")
    kind, key, elements = description[1], description[2], description[4]
    if not isinstance(kind, Name) or kind.name not in STORAGES or not isinstance(key, str):
        raise NotWeights("a storage of an unknown kind")
    if len(description) == 6 and description[5] is not None:
        raise NotWeights("a view of a storage, as torch before 0.4 wrote it")
    return StoredStorage(STORAGES[kind.name], key, _count(elements))


def rebuilt(function: object, arguments: tuple) -> object:
    """What a call in a pickle stands for."""
    if not isinstance(function, Name):
        raise NotWeights(f"a call of {type(function).__name__}")
    place = (function.module, function.name)
    if place in DICTS:
        return {}
    if place in REBUILDERS:
        return REBUILDERS[place](*arguments)
    if place in INERT:
        return Inert(str(function))
    raise NotWeights(str(function))


def _tensor(stored: object, offset: object, shape: object, stride: object, *rest: object) -> StoredTensor:
    """torch._utils._rebuild_tensor and its second version, and the third, which says its data type."""
    dtype = next((each for each in rest if isinstance(each, torch.dtype)), None)
    if not isinstance(stored, StoredStorage):
        raise ValueError("a tensor without a storage")
    dtype = dtype or stored.dtype
    if dtype is None:
        raise ValueError("a tensor without a data type")
    return StoredTensor(stored, dtype, _count(offset), _counts(shape), _counts(stride))


def _parameter(data: object, *_: object) -> object:
    if not isinstance(data, StoredTensor):
        raise ValueError("a parameter without a tensor")
    return data


def _from_type(function: object, kind: object, arguments: object, *_: object) -> object:
    """torch._tensor._rebuild_from_type_v2: a tensor that had attributes."""
    if not isinstance(kind, Name) or (kind.module, kind.name) not in TENSOR_CLASSES or not isinstance(arguments, tuple):
        raise NotWeights(f"a tensor of the class {kind}"[:120])
    return rebuilt(function, arguments)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2 ** 60:
        raise ValueError("an invalid size")
    return value


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MOST_DIMENSIONS:
        raise ValueError("an invalid shape")
    return tuple(_count(value) for value in values)


TENSOR_CLASSES = {("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch.nn", "Parameter")}
REBUILDERS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor, ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor, ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
}

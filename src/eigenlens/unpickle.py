"""A closed reader of pickles: a machine of some forty operations that makes plain values and stubs.

Python's own unpickler imports what a file names and calls it. This one looks every name up in a literal table whose
entries are the stubs below, so that a file can only say "here is an ordered dictionary" or "here is a tensor of this
shape". An operation or a name outside the tables ends the reading. The machine also keeps accounts: how many operations
a file asks for, how many bytes it makes us copy, how deep it nests, and whether each tensor lies inside its storage.
"""

from __future__ import annotations

import math
import pickle as ops
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

MAX_STEPS = 500_000  # the largest known generator files need about 60,000
MAX_DEPTH = 100
MAX_NODES = 1_000_000  # of the tree with shared parts counted wherever they appear
MAX_DIMS = 16
MAX_EXPANDED = 1 << 16  # elements that a tensor with stride 0 may claim beyond its storage
MAX_LONG_BYTES = 16  # the magic number of torch has 10
MAX_NAME = 200


class Malformed(Exception):
    """Report what is wrong with a file, as a clause that follows the file's name."""


@dataclass
class Budget:
    """What one file may still ask for, so that no file costs much more than its own size."""

    copied: int
    """Bytes that may still be copied out of the file."""
    steps: int = MAX_STEPS
    """Operations that may still run."""

    def spend(self, steps: int) -> None:
        """Count operations, or what costs as much."""
        self.steps -= steps
        if self.steps < 0:
            raise Malformed(f"its pickle has more than {MAX_STEPS:,} operations, which no generator needs")

    def copy(self, n_bytes: int) -> None:
        """Count bytes that are about to be copied."""
        self.copied -= n_bytes
        if self.copied < 0:
            raise Malformed("it asks for more bytes than it holds")


# --- stubs: what the names in a file may stand for --------------------------------------------------------------------


class PersistentModule(dict):
    """Hold what an NVIDIA persistent object, or a plain torch module inside one, knew: its attributes by name.

    The Python source that such objects carry is dropped unread.
    """

    class_name: str = ""
    """The class that it was, without its module for persistent objects."""

    @property
    def init_args(self) -> tuple[Any, ...]:
        """Return the positional arguments of its constructor; none where the file does not say."""
        return tuple(self.get("_init_args", ()))

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of its constructor; none where the file does not say."""
        return dict(self.get("_init_kwargs", {}))

    def take_state(self, state: Any) -> None:
        """Take the state that the file gives, as `__setstate__` of the real class would."""
        self.update(_state_of(state))


class TFNetwork(dict):
    """Hold the state of an NVIDIA TensorFlow network: `version`, `name`, `static_kwargs`, `components`, `variables`."""

    def take_state(self, state: Any) -> None:
        """Take the state that the file gives, as `__setstate__` of the real class would."""
        self.update((key, value) for key, value in _state_of(state).items() if key != "build_module_src")


class Attributes(dict):
    """Stand for a bag of settings, such as `argparse.Namespace`, while a file is read; it ends as a plain dict."""

    def take_state(self, state: Any) -> None:
        """Take the state that the file gives, as `__setstate__` of the real class would."""
        self.update(_state_of(state))

    __setstate__ = take_state  # the name by which torch's own loader gives a state


class Items(dict):
    """Stand for a dictionary class while a file is read; its items count, its attributes do not."""

    def take_state(self, state: Any) -> None:
        """Take the state that the file gives, as `__setstate__` of the real class would."""
        _state_of(state)


def _state_of(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise Malformed("it gives an object a state that is not a table of attributes")
    return state


def ordered_dict(pairs: Any = ()) -> Items:
    """Return what `collections.OrderedDict(pairs)` would hold."""
    is_list = isinstance(pairs, list | tuple)
    if not is_list or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise Malformed("it holds an ordered dictionary without pairs")
    items = Items()
    for key, value in pairs:
        items[_key(key)] = value
    return items


def plain_set(members: Any = ()) -> set[Any]:
    """Return what `set(members)` would hold."""
    if not isinstance(members, list | tuple):
        raise Malformed("it holds a set without members")
    return {_key(member) for member in members}


def shape_tuple(sizes: Any = ()) -> tuple[int, ...]:
    """Return what `torch.Size(sizes)` would hold."""
    return _numbers(sizes, "a shape")


def latin1_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """Return what `_codecs.encode(text, "latin1")` gives: how protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Malformed("it holds bytes in an unknown encoding")
    return text.encode("latin-1")


def path_text(*parts: Any) -> str:
    """Return the text of a `pathlib` path."""
    if not all(isinstance(part, str) for part in parts):
        raise Malformed("it holds a path without text")
    return "/".join(parts)


def device_text(kind: Any, index: Any = None) -> str:
    """Return the text of a `torch.device`; which device a tensor came from does not matter here."""
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise Malformed("it holds a device without a name")
    return kind if index is None else f"{kind}:{index}"


def persistent_object(meta: Any) -> PersistentModule:
    """Return the stub of `torch_utils.persistence._reconstruct_persistent_obj(meta)`; `meta.module_src` stays unread.

    Source: NVlabs/stylegan2-ada-pytorch, torch_utils/persistence.py, `persistent_class`.
    """
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise Malformed("it holds a persistent object without a class")
    module = PersistentModule(_state_of(meta.get("state")))
    arguments, keywords = module.get("_init_args", ()), module.get("_init_kwargs", {})
    if not isinstance(arguments, list | tuple) or not isinstance(keywords, dict):
        raise Malformed("it holds a persistent object without arguments")
    module.class_name = meta["class_name"]
    return module


# --- numpy ------------------------------------------------------------------------------------------------------------

_NUMPY_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class NumpyType:
    """Stand for a `numpy.dtype` of numbers; objects, records, text and dates are refused."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(code, str):
            raise Malformed("it holds a numpy type without a name")
        if code.lstrip("<>|=") not in _NUMPY_CODES:
            raise Malformed(f"it holds a numpy array of type {shown(code)}, and only numbers are read")
        self.dtype = np.dtype(code)

    def take_state(self, state: Any) -> None:
        """Take the state that the file gives, as `__setstate__` of the real class would."""
        is_plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
        if not is_plain or state[1] not in ("<", ">", "|", "="):
            raise Malformed("it holds a numpy type that is not a plain number")
        self.dtype = self.dtype.newbyteorder(state[1])

    __setstate__ = take_state


class NumpyArray:
    """Stand for a `numpy.ndarray` while a file is read; it ends as a tensor."""

    shape: tuple[int, ...] = (0,)
    dtype = np.dtype(np.float32)
    order = "C"
    data: bytes | memoryview = b""

    def take_state(self, state: Any) -> None:
        """Take the state that the file gives, as `__setstate__` of the real class would."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise Malformed("it holds a numpy array of an unknown version")
        self._fill(state[4], state[2], state[1], "F" if state[3] is True else "C")

    __setstate__ = take_state

    def _fill(self, data: Any, kind: Any, shape: Any, order: str) -> None:
        shape = _numbers(shape, "a shape")
        if not isinstance(kind, NumpyType) or not isinstance(data, bytes | memoryview):
            raise Malformed("it holds a numpy array without numbers")
        if len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise Malformed(f"it holds a numpy array of shape {shown(shape)} with {len(data)} bytes of numbers")
        self.shape, self.dtype, self.order, self.data = shape, kind.dtype, order, data

    def tensor(self) -> torch.Tensor:
        """Return a copy of the array as a tensor."""
        array = np.frombuffer(self.data, self.dtype).reshape(self.shape, order="F" if self.order == "F" else "C")
        return torch.from_numpy(np.array(array, self.dtype.newbyteorder("="), order="C"))


def numpy_reconstruct(kind: Any, shape: Any, typecode: Any) -> NumpyArray:
    """Return what `numpy.core.multiarray._reconstruct` makes: an empty array that waits for its state."""
    if kind is not NumpyArray or shape != (0,):
        raise Malformed("it holds a numpy array that is not made empty and then filled")
    return NumpyArray()


def numpy_frombuffer(data: Any, kind: Any, shape: Any, order: Any) -> NumpyArray:
    """Return what `numpy.core.numeric._frombuffer` makes: how protocol 5 writes arrays."""
    array = NumpyArray()
    array._fill(data, kind, shape, "F" if order == "F" else "C")
    return array


def numpy_scalar(kind: Any, data: Any) -> Any:
    """Return what `numpy.core.multiarray.scalar` makes, as a plain number."""
    if not isinstance(kind, NumpyType) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise Malformed("it holds a numpy number without its bytes")
    return np.frombuffer(data, kind.dtype)[0].item()


# --- tensors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Storage:
    """What a file says of one storage; `untyped` holds the numbers where they have been read already."""

    dtype: torch.dtype
    n_items: int
    untyped: torch.UntypedStorage | None = None


@dataclass(frozen=True)
class Claim:
    """A tensor that a file describes and whose description holds."""

    shape: tuple[int, ...]


def rebuilt_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    """Return the tensor that `torch._utils._rebuild_tensor_v2` would, or a `Claim` where only its description is read.

    Bounds come first: torch would enlarge a storage to whatever a tensor claims.
    """
    if not isinstance(storage, Storage) or len(rest) > 3 or not all(_is_empty(extra) for extra in rest[1:]):
        raise Malformed("it holds a tensor of an unknown kind")
    return _tensor(storage, offset, shape, stride)


def rebuilt_tensor_of_type(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    """Return the tensor that `torch._utils._rebuild_tensor_v3` would: one whose type stands beside its storage."""
    is_known = 3 <= len(rest) <= 4 and isinstance(rest[2], torch.dtype) and all(map(_is_empty, (rest[1], *rest[3:])))
    if not isinstance(storage, Storage) or not is_known:
        raise Malformed("it holds a tensor of an unknown kind")
    n_items = storage.n_items * storage.dtype.itemsize // rest[2].itemsize
    return _tensor(Storage(rest[2], n_items, storage.untyped), offset, shape, stride)


def _is_empty(extra: Any) -> bool:
    return extra is None or (isinstance(extra, dict) and not extra)


def _tensor(storage: Storage, offset: Any, shape: Any, stride: Any) -> Any:
    shape, stride = _numbers(shape, "a shape"), _numbers(stride, "strides")
    (offset,) = _numbers((offset,), "an offset")
    if len(shape) != len(stride):
        raise Malformed(f"it holds a tensor of shape {shown(shape)} with {len(stride)} strides")
    if math.prod(filter(None, shape)) >= 1 << 62:
        raise Malformed(f"it holds a shape {shown(shape)} that no tensor has")
    n_elements = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if n_elements else -1
    if last >= storage.n_items or n_elements > max(storage.n_items, MAX_EXPANDED):
        raise Malformed(f"it claims a tensor of shape {shown(shape)} in a storage of {storage.n_items} numbers")
    if storage.untyped is None:
        return Claim(shape)
    return torch.empty(0, dtype=storage.dtype).set_(storage.untyped, offset if n_elements else 0, shape, stride)


def rebuilt_parameter(data: Any, *rest: Any) -> Any:
    """Return the tensor inside a `torch.nn.Parameter`."""
    if not isinstance(data, Claim | torch.Tensor) or len(rest) != 2 or not _is_empty(rest[1]):
        raise Malformed("it holds a parameter without a tensor, or with hooks")
    return data


def _numbers(values: Any, what: str) -> tuple[int, ...]:
    """Return `values` as a tuple of whole numbers from 0 that torch can count with."""
    is_list = isinstance(values, list | tuple) and len(values) <= MAX_DIMS
    if not is_list or not all(type(value) is int for value in values):
        raise Malformed(f"it holds {what} of an unknown kind")
    if not all(0 <= value < 1 << 40 for value in values) or math.prod(filter(None, values)) >= 1 << 120:
        raise Malformed(f"it holds {what} {shown(values)} that no tensor has")
    return tuple(values)


# --- the literal tables -----------------------------------------------------------------------------------------------

_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


@dataclass(frozen=True)
class StorageType:
    """Stand for a storage class of torch such as `torch.FloatStorage`."""

    dtype: torch.dtype


# Names that torch.load(weights_only=True) does not know by itself, and the stubs that it is to use for them.
STAND_INS: dict[str, Any] = {
    "argparse.Namespace": Attributes,
    "models.utils.config.BaseConfig": Attributes,  # settings of the GAN zoo
    "pathlib.PosixPath": path_text,
    "pathlib.WindowsPath": path_text,
    "pathlib._local.PosixPath": path_text,
    "pathlib._local.WindowsPath": path_text,
    "numpy.dtype": NumpyType,
    "numpy.ndarray": NumpyArray,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
    "numpy.core.multiarray._reconstruct": numpy_reconstruct,
    "numpy._core.multiarray._reconstruct": numpy_reconstruct,
    "numpy.core.numeric._frombuffer": numpy_frombuffer,
    "numpy._core.numeric._frombuffer": numpy_frombuffer,
}
# Names that it does know; here they make stubs.
TORCH_NAMES: dict[str, Any] = {
    **STAND_INS,
    **{f"torch.{name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{str(dtype): dtype for dtype in _DTYPES},
    "torch.storage.UntypedStorage": StorageType(torch.uint8),
    "torch._utils._rebuild_tensor": rebuilt_tensor,
    "torch._utils._rebuild_tensor_v2": rebuilt_tensor,
    "torch._utils._rebuild_tensor_v3": rebuilt_tensor_of_type,
    "torch._utils._rebuild_parameter": rebuilt_parameter,
    "torch.Size": shape_tuple,
    "torch.device": device_text,
    "collections.OrderedDict": ordered_dict,
    "builtins.set": plain_set,
    "__builtin__.set": plain_set,
    "_codecs.encode": latin1_bytes,
}
# Plain torch modules occur as attributes of persistent ones, such as the class embedding of StyleGAN-XL.
_MODULES = (
    "sparse.Embedding", "linear.Linear", "linear.Identity", "conv.Conv2d", "conv.ConvTranspose2d",
    "batchnorm.BatchNorm2d", "container.Sequential", "container.ModuleList", "container.ModuleDict", "activation.ReLU",
    "activation.ReLU6", "activation.LeakyReLU", "activation.SiLU", "activation.Sigmoid", "activation.Tanh",
    "activation.Hardswish", "pooling.AvgPool2d", "pooling.AdaptiveAvgPool2d", "upsampling.Upsample", "dropout.Dropout",
    "flatten.Flatten",
)  # fmt: skip


def _module_class(name: str) -> type[PersistentModule]:
    return type("PersistentModule", (PersistentModule,), {"class_name": name})


_MODULE_CLASSES = {f"torch.nn.modules.{name}": _module_class(f"torch.nn.modules.{name}") for name in _MODULES}
NVIDIA_NAMES: dict[str, Any] = {
    **TORCH_NAMES,
    **_MODULE_CLASSES,
    "torch_utils.persistence._reconstruct_persistent_obj": persistent_object,
    "dnnlib.tflib.network.Network": TFNetwork,
    "dnnlib.util.EasyDict": Items,
}
_STUBS_WITH_STATE = (PersistentModule, TFNetwork, Attributes, Items, NumpyType, NumpyArray)
_NEW = (PersistentModule, TFNetwork, Attributes, Items)  # classes that NEWOBJ may make


# --- the machine ------------------------------------------------------------------------------------------------------

_OPERATIONS = [bytes([code]) for code in range(256)]
_U1, _U2, _U4, _U8 = (struct.Struct(code) for code in ("<B", "<H", "<I", "<Q"))
_CONSTANTS = {ops.NONE: None, ops.NEWTRUE: True, ops.NEWFALSE: False, ops.EMPTY_TUPLE: ()}
_EMPTY: dict[bytes, Callable[[], Any]] = {ops.EMPTY_DICT: dict, ops.EMPTY_LIST: list, ops.EMPTY_SET: set}
_EMPTY_COST = 4
_NUMBERS = {ops.BININT1: _U1, ops.BININT2: _U2, ops.BININT: struct.Struct("<i"), ops.BINFLOAT: struct.Struct(">d")}
_TEXTS = {ops.SHORT_BINUNICODE: _U1, ops.BINUNICODE: _U4, ops.BINUNICODE8: _U8}
_BYTES = {ops.SHORT_BINBYTES: _U1, ops.BINBYTES: _U4, ops.BINBYTES8: _U8, ops.BYTEARRAY8: _U8}
_OLD_TEXTS = {ops.SHORT_BINSTRING: _U1, ops.BINSTRING: _U4}  # of Python 2
_GETS, _PUTS = {ops.BINGET: _U1, ops.LONG_BINGET: _U4}, {ops.BINPUT: _U1, ops.LONG_BINPUT: _U4}
_TUPLES = {ops.TUPLE1: 1, ops.TUPLE2: 2, ops.TUPLE3: 3}
_SKIPPED = {ops.FRAME: 8, ops.PROTO: 1}
_MARK = object()
_CUT = "it is cut off: its pickle goes on after the end of the file"
# RuntimeError: tensors and values of other kinds do not compare.
_GARBLED = (IndexError, KeyError, TypeError, AttributeError, OverflowError, ValueError, RuntimeError, struct.error)


class Machine:
    """Run one pickle in closed circuit.

    Args:
        data: the bytes that hold it.
        names: what each `module.name` in it stands for; any other ends the reading.
        budget: the accounts that it shares with the other pickles of its file.
        storage: turns a persistent id into a `Storage`; without it such ids end the reading.
    """

    def __init__(
        self,
        data: memoryview,
        names: Mapping[str, Any],
        budget: Budget,
        storage: Callable[[Any], Storage] | None = None,
    ) -> None:
        self.data, self.names, self.budget, self.storage = data, names, budget, storage
        self.callables = {id(value) for value in names.values() if callable(value)}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.position = 0

    def load(self, start: int = 0) -> tuple[Any, int]:
        """Run the pickle that begins at byte `start`; return its value and the byte after it.

        Raises:
            Malformed: where it is cut, garbled, or asks for anything outside the tables.
        """
        self.stack, self.memo, self.position = [], {}, start
        try:
            while (operation := _OPERATIONS[self._number(_U1)]) != ops.STOP:
                self.budget.spend(1)
                self._step(operation)
            value = self._pop()
        except _GARBLED as error:
            raise Malformed(f"its pickle is garbled at byte {self.position:,}") from error
        if self.stack:
            raise Malformed("its pickle ends before it is complete")
        return value, self.position

    def _step(self, operation: bytes) -> None:
        push = self.stack.append
        if operation in _GETS:
            push(self.memo[self._number(_GETS[operation])])
        elif operation == ops.MEMOIZE:
            self.memo[len(self.memo)] = self._top()
        elif operation in _PUTS:
            self.memo[self._number(_PUTS[operation])] = self._top()
        elif operation in _NUMBERS:
            push(self._number(_NUMBERS[operation]))
        elif operation in _CONSTANTS:
            push(_CONSTANTS[operation])
        elif operation in _EMPTY:
            self.budget.spend(_EMPTY_COST)  # an empty container takes two hundred bytes of memory for one of the file
            push(_EMPTY[operation]())
        elif operation in _TUPLES:
            push(tuple(reversed([self._pop() for _ in range(_TUPLES[operation])])))
        elif operation == ops.MARK:
            push(_MARK)
        elif operation in _TEXTS:
            push(str(self._take(self._number(_TEXTS[operation])), "utf-8", "surrogatepass"))
        elif operation in _SKIPPED:
            self._take(_SKIPPED[operation])
        elif operation in _BYTES:
            push(self._bytes(self._number(_BYTES[operation])))
        elif operation in _OLD_TEXTS:
            push(str(self._take(self._number(_OLD_TEXTS[operation])), "latin-1"))
        elif operation in self._actions:
            self._actions[operation](self)
        else:
            known = {opcode.code: opcode.name for opcode in pickletools.opcodes}
            name = known.get(operation.decode("latin-1"), operation.hex())
            raise Malformed(f"its pickle uses the operation {name}, which no weights need")

    def _take(self, n_bytes: int) -> memoryview:
        end = self.position + n_bytes
        if end > len(self.data):
            raise Malformed(_CUT)
        taken, self.position = self.data[self.position : end], end
        return taken

    def _number(self, code: struct.Struct) -> Any:
        if self.position + code.size > len(self.data):
            raise Malformed(_CUT)
        (value,) = code.unpack_from(self.data, self.position)
        self.position += code.size
        return value

    def _bytes(self, length: int) -> bytes | memoryview:
        taken = self._take(length)
        return bytes(taken) if length < 256 else taken  # the payloads of tensors are not copied on the way

    def _top(self) -> Any:
        top = self.stack[-1]
        if top is _MARK:
            raise Malformed("its pickle is garbled: it uses a mark as a value")
        return top

    def _pop(self) -> Any:
        top = self._top()
        self.stack.pop()
        return top

    def _marked(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                items = self.stack[start + 1 :]
                del self.stack[start:]
                return items
        raise Malformed("its pickle is garbled: a mark is missing")

    def _tuple(self) -> None:
        self.stack.append(tuple(self._marked()))

    def _list_items(self) -> None:
        self._extend(self._marked())

    def _list_item(self) -> None:
        self._extend([self._pop()])

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise Malformed("its pickle appends to something that is not a list")
        target.extend(items)

    def _dict_items(self) -> None:
        self._update(self._marked())

    def _dict_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _update(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) not in (dict, Items) or len(items) % 2:
            raise Malformed("its pickle sets items of something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _set_items(self) -> None:
        items, target = self._marked(), self._top()
        if type(target) is not set:
            raise Malformed("its pickle adds members to something that is not a set")
        target.update(_key(item) for item in items)

    def _long(self) -> None:
        length = self._number(_U1)
        if length > MAX_LONG_BYTES:
            raise Malformed(f"its pickle holds a whole number of {length} bytes")
        self.stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _line(self) -> str:
        end = bytes(self.data[self.position : self.position + MAX_NAME]).find(b"\n")
        if end < 0:
            raise Malformed("its pickle is garbled: a name does not end")
        return str(self._take(end + 1)[:-1], "utf-8")

    def _global(self) -> None:
        module, name = self._line(), self._line()
        self._look_up(module, name)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._look_up(module, name)

    def _look_up(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Malformed("its pickle is garbled: it asks for a name that is not text")
        full = f"{module}.{name}"
        if full not in self.names:
            raise Malformed(f"it asks for {shown(full)}, and nothing but weights and settings is read from a file")
        self.stack.append(self.names[full])

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if id(function) not in self.callables or type(arguments) is not tuple or function in _NEVER_CALLED:
            raise Malformed("its pickle calls something that is not one of the known constructors")
        self.budget.spend(sum(_cost(argument) for argument in arguments))
        self.stack.append(function(*arguments))

    def _new(self) -> None:
        arguments, kind = self._pop(), self._pop()
        if not isinstance(kind, type) or not issubclass(kind, _NEW) or arguments != ():
            raise Malformed("its pickle makes an object that is not one of the known containers")
        self.stack.append(kind())

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if not isinstance(target, _STUBS_WITH_STATE):
            raise Malformed("its pickle gives a state to something that has none")
        self.budget.spend(_cost(state))
        target.take_state(state)

    def _persistent(self) -> None:
        identity = self._pop()
        if self.storage is None:
            raise Malformed("its pickle refers to data outside itself")
        self.stack.append(self.storage(identity))

    _actions: ClassVar[dict[bytes, Callable[[Machine], None]]] = {
        ops.TUPLE: _tuple,
        ops.APPEND: _list_item,
        ops.APPENDS: _list_items,
        ops.SETITEM: _dict_item,
        ops.SETITEMS: _dict_items,
        ops.ADDITEMS: _set_items,
        ops.LONG1: _long,
        ops.GLOBAL: _global,
        ops.STACK_GLOBAL: _stack_global,
        ops.REDUCE: _reduce,
        ops.NEWOBJ: _new,
        ops.BUILD: _build,
        ops.BINPERSID: _persistent,
    }


# Classes that are only named, or made empty by NEWOBJ.
_NEVER_CALLED = (NumpyArray, TFNetwork, Attributes, Items, *_MODULE_CLASSES.values())


def _cost(argument: Any) -> int:
    """Count what handling an argument costs: a file may pass the same one, by its memo, many times."""
    if isinstance(argument, list | tuple | dict | set):
        return len(argument)
    return len(argument) // 64 if isinstance(argument, str) else 0


def _key(value: Any) -> Any:
    """Return `value` if it may be a key; hashing a deeply nested tuple would end the process."""
    scalars = value if type(value) is tuple and len(value) <= 8 else (value,)
    for scalar in scalars:
        if type(scalar) not in (str, int, float, bool, bytes, type(None)):
            raise Malformed("its pickle uses a key that is neither text nor a number")
        if type(scalar) is int and not -(1 << 63) <= scalar < 1 << 63:
            raise Malformed("its pickle uses a number as a key that no counter reaches")
    return value


# --- from the machine's values to a plain tree ------------------------------------------------------------------------


def check_tree(tree: Any) -> None:
    """Make sure that `tree` is one: no cycles, no endless depth, no sharing that makes a walk explode.

    Raises:
        Malformed: where it is not.
    """
    sizes: dict[int, int] = {}
    on_path: set[int] = set()
    pending: list[tuple[Any, bool]] = [(tree, False)]
    while pending:  # a stack of our own: the depth of the tree is what is being checked
        node, is_done = pending.pop()
        if id(node) in sizes:
            continue
        children = _children(node)
        if is_done:
            on_path.discard(id(node))
            inner = sum(sizes[id(child)] for child in children if isinstance(child, _CONTAINERS))
            sizes[id(node)] = 1 + len(children) + inner
            if sizes[id(node)] > MAX_NODES:
                raise Malformed(f"its content repeats itself into more than {MAX_NODES:,} parts")
            continue
        if id(node) in on_path:
            raise Malformed("its content contains itself")
        on_path.add(id(node))
        if len(on_path) > MAX_DEPTH:
            raise Malformed(f"its content is nested more than {MAX_DEPTH} deep")
        pending.append((node, True))
        pending.extend((child, False) for child in children if isinstance(child, _CONTAINERS))


_CONTAINERS = (dict, list, tuple, set)


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return list(node) if isinstance(node, list | tuple) else []  # the members of a set are scalars already


def plain(tree: Any, budget: Budget) -> Any:
    """Turn what a checked tree holds into plain values: dicts, lists, tuples, sets, numbers, text, bytes and tensors.

    Raises:
        Malformed: on a leaf of any other kind.
    """
    done: dict[int, tuple[Any, Any]] = {}

    def convert(node: Any) -> Any:
        if id(node) not in done:
            done[id(node)] = (node, made(node))  # the node is kept, or another object could take over its id
        return done[id(node)][1]

    def made(node: Any) -> Any:
        if isinstance(node, PersistentModule | TFNetwork):
            for key, value in node.items():
                node[key] = convert(value)
            return node
        if isinstance(node, dict):
            return {key: convert(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            items = [convert(item) for item in node]
            return items if isinstance(node, list) else tuple(items)
        return _plain_leaf(node, budget)

    return convert(tree)


def _plain_leaf(leaf: Any, budget: Budget) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.data  # without the Parameter around it
    if isinstance(leaf, NumpyArray):
        budget.copy(len(leaf.data))
        return leaf.tensor()
    if isinstance(leaf, memoryview):
        budget.copy(len(leaf))
        return bytes(leaf)
    if isinstance(leaf, torch.dtype):
        return str(leaf).removeprefix("torch.")
    if isinstance(leaf, torch.device):
        return str(leaf)
    if leaf is None or isinstance(leaf, bool | int | float | complex | str | bytes | set):
        return leaf
    raise Malformed(f"it holds a bare {type(leaf).__name__}, which is neither a number nor text nor a tensor")


def shown(value: Any, limit: int = 80) -> str:
    """Return `value` as short text in one line, whatever a file put into it."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(character if character.isprintable() else "?" for character in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."

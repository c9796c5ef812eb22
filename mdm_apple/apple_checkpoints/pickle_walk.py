"""Reads a pickle without unpickling: extracts tensors and plain values, and executes nothing.

Input: the bytes of a `data.pkl` that torch.save wrote. Output: the object they describe. In it,
tensors are `TensorRef`s (a place in a storage), and anything that would need a class or a call is
an `Opaque` with only a name. Every opcode is interpreted here on our own stack; the standard
library's pickletools only splits the bytes into opcodes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from mdm_apple.errors import MdmError

MAX_PICKLE_BYTES = 4 << 20  # the largest published checkpoint needs about 250 KB
MAX_MEMO = 500_000
MAX_NAME = 1000
MAX_DIMENSIONS = 16


class PthError(MdmError):
    """A .pth file that cannot be read safely or does not fit; one sentence."""


@dataclass(frozen=True)
class Opaque:
    """An object of a class or function outside our list: only its dotted name is known."""

    name: str


@dataclass(frozen=True)
class StorageRef:
    """One storage entry of the archive: its key, element type (a torch name) and element count."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A strided view into a storage; offset and strides in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name in the pickle that this reader understands."""

    name: str


_STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
_REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
_ORDERED_DICT = "collections.OrderedDict"
_SIZE = "torch.Size"
_KNOWN = {*_STORAGES, _REBUILD_TENSOR, _REBUILD_PARAMETER, _ORDERED_DICT, _SIZE}

_MARK = object()


def walk_pickle(data: bytes) -> object:
    """The object that the pickle describes; raises PthError for a damaged or abusive pickle."""
    if len(data) > MAX_PICKLE_BYTES:
        raise PthError(
            f"the description of the tensors is {len(data)} bytes long; expected at most "
            f"{MAX_PICKLE_BYTES}, so this is not a checkpoint of this kind."
        )
    machine = _Machine()
    for name, argument in _opcodes(data):
        if name == "STOP":
            return machine.pop()
        machine.step(name, argument)
    raise PthError("the description of the tensors ends too early; download the file again.")


def _opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    opcodes = pickletools.genops(data)
    while True:
        try:
            opcode, argument, _ = next(opcodes)
        except StopIteration:
            return
        except Exception as error:  # damaged bytes make pickletools raise anything
            raise PthError(
                f"the description of the tensors is damaged ({type(error).__name__}); download "
                "the file again."
            ) from None
        yield opcode.name, argument


class _Machine:
    """The stack and memo of one walk. Values are Python primitives and the classes above only."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise PthError(
                f"the description of the tensors uses {name}, which torch.save never does."
            )

    def pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise PthError("the description of the tensors takes more than it put down.")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self.pop()
        self._stack.append(value)
        return value

    def _to_mark(self) -> list[Any]:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i] is _MARK:
                values = self._stack[i + 1 :]
                del self._stack[i:]
                return values
        raise PthError("the description of the tensors takes more than it put down.")

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def drop(self, _: Any) -> None:
        if not self._stack:
            raise PthError("the description of the tensors takes more than it put down.")
        self._stack.pop()

    def drop_to_mark(self, _: Any) -> None:
        self._to_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._top())

    def remember(self, index: int | None) -> None:
        if len(self._memo) >= MAX_MEMO:
            raise PthError(f"the description of the tensors remembers more than {MAX_MEMO} values.")
        self._memo[len(self._memo) if index is None else index] = self._top()

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise PthError("the description of the tensors recalls a value it never stored.")
        self._stack.append(self._memo[index])

    def make_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def make_tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    def make_list(self, _: Any) -> None:
        self._stack.append(self._to_mark())

    def make_dict(self, _: Any) -> None:
        values = self._to_mark()
        built: dict[Any, Any] = {}
        _set_items(built, values)
        self._stack.append(built)

    def make_set(self, _: Any) -> None:
        self._to_mark()
        self._stack.append(Opaque("set"))

    def append(self, _: Any) -> None:
        value = self.pop()
        self._extend([value])

    def extend(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            cast("list[Any]", target).extend(values)
        elif not isinstance(target, Opaque):
            raise PthError(
                "the description of the tensors appends to something that is not a list."
            )

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    def set_items(self, _: Any) -> None:
        self._set_items(self._to_mark())

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, dict):
            _set_items(cast("dict[Any, Any]", target), values)
        elif not isinstance(target, Opaque):
            raise PthError(
                "the description of the tensors fills something that is not a dictionary."
            )

    def add_items(self, _: Any) -> None:
        self._to_mark()  # sets are opaque: their members would have to be hashed
        self._top()

    def named(self, argument: str) -> None:
        """A class or function by name: looked up in a table, never imported, never called."""
        self._stack.append(_named(argument.replace(" ", ".", 1)))

    def stack_named(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PthError(
                "the description of the tensors names a class with something that is not text."
            )
        if len(module) + len(name) > MAX_NAME:
            raise PthError("the description of the tensors names a class with an overlong name.")
        self._stack.append(_named(f"{module}.{name}"))

    def extension(self, code: int) -> None:
        self._stack.append(Opaque(f"extension {code}"))

    def call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self._stack.append(_call(function, arguments))

    def new(self, _: Any) -> None:
        self.pop()
        self._stack.append(_instance(self.pop()))

    def new_with_keywords(self, _: Any) -> None:
        self.pop()
        self.new(None)

    def named_instance(self, argument: str) -> None:
        self._to_mark()
        self._stack.append(_instance(_named(argument.replace(" ", ".", 1))))

    def instance(self, _: Any) -> None:
        values = self._to_mark()
        self._stack.append(_instance(values[0] if values else None))

    def build(self, _: Any) -> None:
        self.pop()  # attributes of an opaque object, or `_metadata` of a state dict
        self._top()

    def persistent(self, argument: Any) -> None:
        self._stack.append(_storage(argument))

    def stack_persistent(self, _: Any) -> None:
        self._stack.append(_storage(self.pop()))


def _named(name: str) -> _Global | Opaque:
    return _Global(name) if name in _KNOWN else Opaque(name[:200])


def _instance(of: object) -> Opaque:
    return Opaque(of.name if isinstance(of, (Opaque, _Global)) else "an object")


def _set_items(target: dict[Any, Any], values: list[Any]) -> None:
    if len(values) % 2:
        raise PthError("the description of the tensors has a key without a value.")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if _is_plain_key(key):
            target[key] = value


def _is_plain_key(key: object) -> bool:
    """Whether hashing and comparing is quick: nested tuples can be built to take forever."""
    if isinstance(key, str):
        return len(key) <= MAX_NAME
    return isinstance(key, int) and key.bit_length() <= 64


def _call(function: object, arguments: object) -> object:
    if not isinstance(function, _Global):
        return _instance(function)
    if not isinstance(arguments, tuple):
        raise PthError(f"{function.name} is given something that is not a list of arguments.")
    values = cast("tuple[object, ...]", arguments)
    if function.name == _ORDERED_DICT and not values:
        return {}
    if function.name == _SIZE and len(values) == 1:
        return values[0]
    if function.name == _REBUILD_PARAMETER and values:
        return values[0]
    if function.name == _REBUILD_TENSOR:
        return _tensor(values)
    return Opaque(function.name)


def _tensor(values: tuple[object, ...]) -> TensorRef:
    storage, offset, shape, strides = (*values, None, None, None, None)[:4]
    if not isinstance(storage, StorageRef) or not _is_count(offset):
        raise PthError("a tensor is described without a storage and an offset.")
    if not _are_counts(shape) or not _are_counts(strides):
        raise PthError("a tensor is described with an impossible shape or strides.")
    shape = cast("tuple[int, ...]", shape)
    strides = cast("tuple[int, ...]", strides)
    if len(shape) != len(strides):
        raise PthError("a tensor is described with a shape and strides that do not match.")
    return TensorRef(storage, cast(int, offset), shape, strides)


def _storage(argument: object) -> StorageRef:
    values = list(cast("tuple[object, ...]", argument)) if isinstance(argument, tuple) else []
    if len(values) in (5, 6) and values[0] == "storage":
        kind, key, location, count = values[1:5]
        known = isinstance(kind, _Global) and kind.name in _STORAGES
        if known and isinstance(key, str) and isinstance(location, str) and _is_count(count):
            return StorageRef(key, _STORAGES[cast(_Global, kind).name], cast(int, count))
        if isinstance(kind, Opaque):
            raise PthError(
                f"a storage has the type {kind.name[:60]!r}, which this reader does not know; save "
                "the weights as float32."
            )
    raise PthError("a storage is referred to in a way that torch.save never does.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _are_counts(value: object) -> bool:
    if not isinstance(value, tuple) or len(cast("tuple[object, ...]", value)) > MAX_DIMENSIONS:
        return False
    return all(map(_is_count, cast("tuple[object, ...]", value)))


_LITERALS = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
        "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"
    }
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": lambda: (),
    "EMPTY_LIST": lambda: cast("list[object]", []),
    "EMPTY_DICT": lambda: cast("dict[object, object]", {}),
    "EMPTY_SET": lambda: Opaque("set"),
    "BYTEARRAY8": lambda: Opaque("bytearray"),
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.make_tuple_of(1),
    "TUPLE2": lambda machine, _: machine.make_tuple_of(2),
    "TUPLE3": lambda machine, _: machine.make_tuple_of(3),
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_set,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stack_named,
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.named_instance,
    "OBJ": _Machine.instance,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.stack_persistent,
}

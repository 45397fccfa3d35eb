"""Reads the tensors of .pt and .bin files without running anything in them.

A pickle is a program for a small stack machine that may call any function of Python. This machine knows only the
instructions that build data: a class or function is a name, a call of it is a Record of that name with its arguments,
and the only names that mean something are those by which torch and Python build tensors and dictionaries. Storages are
mapped from the file, not copied, so a small file cannot ask for much memory.

Formats: torch's zip archives (since 1.6) and the older sequence of pickles with the storages behind them.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What malformed bytes make the parsers below raise.
_DAMAGE = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Record:
    """An object of a class that is not built: what a pickle says about it.

    Attributes:
        kind: the class or function, as a Name (or whatever the pickle calls).
        args: what it would have been called with.
        state: what would have been put into the object.
        items: what would have been appended or set by key.
    """

    kind: Any
    args: tuple = ()
    state: Any = None
    items: list = field(default_factory=list)


def load(path: Path) -> Any:
    """The object that a .pt or .bin file holds: tensors and plain data; anything else in it is a Record.

    Raises:
        UserError: it is not such a file, is damaged, or asks for what no honest file needs.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); use another file") from error
    try:
        return _load_zip(content, path) if content[:2] == b"PK" else _load_legacy(content)
    except _DAMAGE as error:
        raise UserError(
            f"{path} is damaged or not a torch file ({type(error).__name__}: {str(error)[:200]}); use another file"
        ) from error


def _load_zip(content: mmap.mmap, path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    [pickle] = [name for name in members if name.split("/")[-1] == "data.pkl"]
    root = pickle.removesuffix("data.pkl")
    order = members.get(f"{root}byteorder")
    if order and _stored(content, order) != b"little":
        raise ValueError("its numbers are not little-endian")

    def storage(key: str, dtype: torch.dtype, num_elements: int) -> Tensor:
        info = members[f"{root}data/{key}"]
        if num_elements * dtype.itemsize > info.file_size:
            raise ValueError(f"storage {key} is shorter than it should be")
        offset = _offset(content, info)
        if offset % dtype.itemsize:
            raise ValueError(f"storage {key} is not aligned")  # torch aligns them; a copy could be asked for often
        return _map(content, dtype, num_elements, offset)

    return _Machine(_Storages(storage)).run(_stored(content, members[pickle]))


def _offset(content: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin. torch never compresses, so what claims to be compressed is no torch file."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{info.filename} is compressed")
    name_size, extra_size = struct.unpack("<26xHH", content[info.header_offset : info.header_offset + 30])
    return info.header_offset + 30 + name_size + extra_size


def _stored(content: mmap.mmap, info: zipfile.ZipInfo) -> bytes:
    start = _offset(content, info)
    return content[start : start + info.file_size]


def _map(content: mmap.mmap, dtype: torch.dtype, num_elements: int, offset: int) -> Tensor:
    """A storage as a 1-D tensor over the file's own bytes."""
    if num_elements < 0 or offset + num_elements * dtype.itemsize > len(content):
        raise ValueError("a storage lies beyond the end of the file")
    if not num_elements:
        return torch.empty(0, dtype=dtype)
    if offset % dtype.itemsize == 0:
        return torch.frombuffer(content, dtype=dtype, count=num_elements, offset=offset)
    return torch.frombuffer(bytearray(content[offset : offset + num_elements * dtype.itemsize]), dtype=dtype)


def _load_legacy(content: mmap.mmap) -> Any:
    """Magic number, version, system, object, keys of storages: five pickles; then each storage with its length."""
    ends, start = [0], 0
    for _ in range(5):
        start = _end(content, start)
        ends.append(start)
    magic, _, system, body, keys = (content[a:b] for a, b in pairwise(ends))
    if _Machine(_no_storages).run(magic) != LEGACY_MAGIC:
        raise ValueError("it does not begin like a torch file")
    if not _Machine(_no_storages).run(system).get("little_endian", True):
        raise ValueError("its numbers are not little-endian")
    dtypes: dict[str, torch.dtype] = {}

    def note(key: str, dtype: torch.dtype, num_elements: int) -> Tensor:
        dtypes[key] = dtype
        return torch.empty(0, dtype=dtype).expand(0)

    _Machine(_Storages(note), build=False).run(body)
    found, offset = {}, ends[-1]
    for key in _Machine(_no_storages).run(keys):
        [num_elements] = struct.unpack("<q", content[offset : offset + 8])
        found[key] = _map(content, dtypes[key], num_elements, offset + 8)
        offset += 8 + num_elements * dtypes[key].itemsize
    return _Machine(_Storages(lambda key, dtype, num_elements: found[key])).run(body)


def _end(content: mmap.mmap, start: int) -> int:
    """Where the pickle that begins at `start` ends."""
    content.seek(start)
    for _ in pickletools.genops(content):
        pass
    return content.tell()


class _Storages:
    """What the persistent ids of torch's pickles stand for."""

    def __init__(self, find: Callable[[str, torch.dtype, int], Tensor]):
        self.find = find

    def __call__(self, identity: Any) -> Tensor:
        kind, storage_type, key, _, num_elements, *view = identity
        known = kind == "storage" and isinstance(key, str) and isinstance(num_elements, int)
        if not known or storage_type.module not in ("torch", "torch.cuda") or (view and view[0] is not None):
            raise ValueError("it holds an unknown kind of storage")
        return self.find(key, DTYPES[storage_type.name], num_elements)


def _no_storages(identity: Any) -> Tensor:
    raise ValueError("a storage stands where none belongs")


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 gives, within the storage."""
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise ValueError("a tensor has an impossible shape")
    num_elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if num_elements else 0
    if num_elements > len(storage) or last >= max(len(storage), 1):
        raise ValueError("a tensor lies outside its storage")
    return storage.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _checked(pairs: Any) -> Any:
    """Pairs whose keys are cheap to hash: nested tuples take exponentially long."""
    for key, _ in pairs:
        if not (key is None or isinstance(key, (str, bytes, int, float, Name, Record))):
            raise TypeError(f"a key is a {type(key).__name__}")
    return pairs


# The only calls that mean something. All others become a Record.
_KNOWN: dict[Name, Callable[..., Any]] = {
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Name("collections", "OrderedDict"): lambda pairs=(): dict(_checked(pairs)),
    Name("torch", "Size"): tuple,
}
_MARK = object()


class _Machine:
    """The stack machine of pickletools, without calls."""

    def __init__(self, storages: Callable[[Any], Tensor], *, build: bool = True):
        self.storages, self.build = storages, build
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copies = 0

    def run(self, program: bytes) -> Any:
        """The object that a pickle describes."""
        self.copies = len(program)  # entries that calls may copy, so that time and memory stay in proportion to it
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _LITERALS:
                self.stack.append(argument)
            else:
                instruction = getattr(self, f"_{opcode.name.lower()}", None)
                if instruction is None:
                    raise ValueError(f"it holds the instruction {opcode.name}")
                instruction(argument)
        return self.stack.pop()

    def _take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("its stack is too short")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _pop_to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                taken = self.stack[place + 1 :]
                del self.stack[place:]
                return taken
        raise IndexError("it lacks a mark")

    def _call(self, kind: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise TypeError("the arguments of a call are not a tuple")
        known = _KNOWN.get(kind) if isinstance(kind, Name) else None
        if known is None or not self.build:
            return Record(kind, arguments)
        self.copies -= sum(len(argument) for argument in arguments if isinstance(argument, (list, dict)))
        if self.copies < 0:
            raise ValueError("it copies the same entries over and over")
        return known(*arguments)

    # One method for each instruction, called with its argument.

    def _proto(self, _: Any) -> None: ...

    def _frame(self, _: Any) -> None: ...

    def _stop(self, _: Any) -> None: ...

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self._take(1)

    def _pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _empty_set(self, _: Any) -> None:
        self.stack.append([])

    def _list(self, _: Any) -> None:
        self.stack.append(self._pop_to_mark())

    _frozenset = _list

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append(tuple(self._take(1)))

    def _tuple2(self, _: Any) -> None:
        self.stack.append(tuple(self._take(2)))

    def _tuple3(self, _: Any) -> None:
        self.stack.append(tuple(self._take(3)))

    def _dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self.stack.append(dict(_checked(list(zip(items[::2], items[1::2], strict=True)))))

    def _append(self, _: Any) -> None:
        self._extend(self._take(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target.items if isinstance(target, Record) else target).extend(items)

    def _setitem(self, _: Any) -> None:
        self._set(self._take(2))

    def _setitems(self, _: Any) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target, pairs = self.stack[-1], list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, Record):
            target.items.extend(pairs)
        else:
            target.update(_checked(pairs))

    def _global(self, argument: str) -> None:
        self.stack.append(Name(*argument.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        module, name = self._take(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name is not text")
        self.stack.append(Name(module, name))

    def _inst(self, argument: str) -> None:
        self.stack.append(self._call(Name(*argument.split(" ", 1)), tuple(self._pop_to_mark())))

    def _obj(self, _: Any) -> None:
        kind, *arguments = self._pop_to_mark()
        self.stack.append(self._call(kind, tuple(arguments)))

    def _reduce(self, _: Any) -> None:
        self.stack.append(self._call(*self._take(2)))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        kind, arguments, _keywords = self._take(3)
        self.stack.append(self._call(kind, arguments))

    def _build(self, _: Any) -> None:
        [state] = self._take(1)
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state  # tensors and dictionaries need no more state than they have

    def _persid(self, argument: str) -> None:
        self.stack.append(self.storages(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.storages(self._take(1)[0]))

    def _put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    _binget = _long_binget = _get


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}

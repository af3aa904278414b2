"""Reads a pickle without running it.

`load()` executes the pickle's opcodes on inert values: a global is its two names, a call is recorded and never made,
a persistent id must be a torch storage and becomes a `StorageRef` (or is a class with its source beside it, of which
the name is kept). Nothing named in the stream is imported, called or looked up. Only the constructors that wrap tensors
are looked through, by their names (`torch_objects`).

Opcodes and the readers of binary arguments are those of `pickletools`. It is not `genops` itself, which decodes an
argument before anybody can refuse its opcode. What the tables below do not name is refused.
"""

import io
import pickletools
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ckzd.errors import BadCheckpoint
from ckzd.formats.torch_objects import Refused, construct, persistent
from ckzd.formats.tree import Call, Global, Mapping, Node, SetOf

MAX_PICKLE_BYTES = 256 << 20
# A tensor takes about 31, a chunk of torch.distributed.checkpoint 98. At worst they are 1.5 GB (marks), or 20 s of one
# core (calls).
MAX_OPS = 18_000_000
CONTAINER_OPS = 3  # what a mapping, a set or a call counts beside its opcode: they take more memory than other values
MAX_MEMO_INDEX = 1 << 32
MAX_LINE_BYTES = 1 << 16  # of a text argument (protocol 0)


def load(data: bytes, subject: str) -> Node:
    """The tree that the pickle describes. Raises BadCheckpoint, naming `subject`, for anything else."""
    if len(data) > MAX_PICKLE_BYTES:
        raise BadCheckpoint(subject, f"pickle of {len(data)} bytes, at most {MAX_PICKLE_BYTES} are read")
    return load_next(io.BytesIO(data), subject)


def load_next(stream: BinaryIO, subject: str) -> Node:
    """The tree of the pickle that is next in a stream, whose limit bounds it; the stream stands behind it then."""
    try:
        return _Machine().run(stream)
    except Refused as error:
        problem = str(error)
    except (IndexError, KeyError):
        problem = "takes a value that was never put there"
    except (ValueError, OverflowError, struct.error) as error:
        problem = f"malformed argument ({str(error)[:120]!a})"
    except (MemoryError, RecursionError):
        problem = "asks for too much memory"
    raise BadCheckpoint(subject, f"damaged pickle at byte {stream.tell()}: {problem}")


class _Machine:
    """The stack machine: `stack` holds the values since the last mark, `marks` the stacks below it."""

    __slots__ = ("marks", "memo", "ops_left", "stack")

    def __init__(self) -> None:
        self.stack: list[Node] = []
        self.marks: list[list[Node]] = []
        self.memo: dict[int, Node] = {}
        self.ops_left = MAX_OPS

    def run(self, stream: BinaryIO) -> Node:
        while (code := stream.read(1)) != b".":
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise Refused(f"opcode {code!r} is not allowed" if code else "ends before its STOP")
            self.ops_left -= 1
            if self.ops_left < 0:
                self.spend(0)
            read, execute = operation
            execute(self, read(stream) if read else None)
        return self.stack.pop()

    def spend(self, ops: int) -> None:
        """Count work that an opcode could ask for again and again, beside the opcodes themselves."""
        self.ops_left -= ops
        if self.ops_left < 0:
            raise Refused(f"more than {MAX_OPS} operations")

    def pop_mark(self) -> list[Node]:
        """The values since the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def pop_pairs(self) -> list[tuple[Node, Node]]:
        """The values since the last mark, two by two."""
        values = self.pop_mark()
        if len(values) % 2:
            raise Refused("a key without a value")
        return list(zip(values[::2], values[1::2], strict=True))

    def pop_some(self, count: int) -> list[Node]:
        """The last `count` values."""
        if len(self.stack) < count:
            raise IndexError
        values = self.stack[-count:]
        del self.stack[-count:]
        return values


_Read = Callable[[BinaryIO], Node]
_Execute = Callable[[_Machine, Node], None]


# Text arguments: pickletools' readers take lines of any length and warn about escapes.


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise Refused("a text argument without an end")
    return line[:-1]


def _line_integer(stream: BinaryIO) -> Node:
    line = _line(stream)
    return line == b"01" if line in (b"00", b"01") else int(line)


def _line_index(stream: BinaryIO) -> Node:
    return int(_line(stream))


def _line_global(stream: BinaryIO) -> Node:
    return Global(_line(stream).decode("utf-8"), _line(stream).decode("utf-8"))


# Opcodes that take an argument or change what lies below them.


def _push(machine: _Machine, value: Node) -> None:
    machine.stack.append(value)


def _ignore(_machine: _Machine, _argument: Node) -> None:
    pass


def _mark(machine: _Machine, _: Node) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine, _: Node) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _pop_mark(machine: _Machine, _: Node) -> None:
    machine.pop_mark()


def _memoize(machine: _Machine, index: Node) -> None:
    where = len(machine.memo) if index is None else index
    if not isinstance(where, int) or not 0 <= where < MAX_MEMO_INDEX:
        raise Refused("a memo index that is no index")
    machine.memo[where] = machine.stack[-1]


def _recall(machine: _Machine, index: Node) -> None:
    if not isinstance(index, int):
        raise KeyError
    machine.stack.append(machine.memo[index])


def _append(machine: _Machine, values: list[Node]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Call):
        target.items.extend(values)
    elif isinstance(target, list):
        target.extend(values)
    else:
        raise Refused("appends to something that is no list")


def _add_items(machine: _Machine, _: Node) -> None:
    values = machine.pop_mark()
    target = machine.stack[-1]
    if not isinstance(target, (SetOf, Call)):
        raise Refused("adds to something that is no set")
    target.items.extend(values)


def _set_items(machine: _Machine, pairs: list[tuple[Node, Node]]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, (Mapping, Call)):
        raise Refused("sets an item of something that is no mapping")
    target.pairs.extend(pairs)


def _set_item(machine: _Machine, _: Node) -> None:
    key, value = machine.pop_some(2)
    _set_items(machine, [(key, value)])


def _build(machine: _Machine, _: Node) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, (Call, Mapping)):
        target.state = state


def _instance(machine: _Machine, name: Node) -> None:
    args = tuple(machine.pop_mark())
    machine.ops_left -= CONTAINER_OPS
    machine.stack.append(Call(name, args))


# Opcodes that push one value made from what they take.


def _put(make: Callable[[_Machine], Node], ops: int = 0) -> _Execute:
    """Push what `make` gives, which counts as so many more opcodes."""

    def execute(machine: _Machine, _: Node) -> None:
        machine.ops_left -= ops  # looked at with the next opcode
        value = make(machine)  # may leave another stack behind
        machine.stack.append(value)

    return execute


def _stack_global(machine: _Machine) -> Node:
    module, name = machine.pop_some(2)
    if type(module) is not str or type(name) is not str:
        raise Refused("a global whose name is no string")
    return Global(module, name)


def _reduce(machine: _Machine) -> Node:
    function, args = machine.pop_some(2)
    return construct(function, args, machine.spend)


def _new_with_keywords(machine: _Machine) -> Node:
    function, args, keywords = machine.pop_some(3)
    return Call(function, (args, keywords))


def _object(machine: _Machine) -> Node:
    values = machine.pop_mark()
    return Call(values[0], tuple(values[1:]))


def _binary(*names: str) -> Iterator[tuple[str, _Read]]:
    for opcode in pickletools.opcodes:
        if opcode.name in names and opcode.arg is not None:
            yield opcode.name, opcode.arg.reader


_PUSHED: dict[str, _Read] = {
    **dict(_binary("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")),
    **dict(_binary("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING")),
    **dict(_binary("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")),
    "INT": _line_integer,
    "LONG": lambda stream: int(_line(stream).removesuffix(b"L")),
    "FLOAT": lambda stream: float(_line(stream)),
    "UNICODE": lambda stream: _line(stream).decode("raw-unicode-escape"),
    "GLOBAL": _line_global,
}
_WITH_ARGUMENT: dict[str, tuple[_Read, _Execute]] = {
    **{name: (reader, _push) for name, reader in _PUSHED.items()},
    **{name: (reader, _ignore) for name, reader in _binary("PROTO", "FRAME")},
    **{name: (reader, _memoize) for name, reader in _binary("BINPUT", "LONG_BINPUT")},
    **{name: (reader, _recall) for name, reader in _binary("BINGET", "LONG_BINGET")},
    "PUT": (_line_index, _memoize),
    "GET": (_line_index, _recall),
    "INST": (_line_global, _instance),
}
_WITHOUT_ARGUMENT: dict[str, _Execute] = {
    "NONE": _put(lambda _: None),
    "NEWTRUE": _put(lambda _: True),
    "NEWFALSE": _put(lambda _: False),
    "EMPTY_DICT": _put(lambda _: Mapping(), CONTAINER_OPS),
    "EMPTY_LIST": _put(lambda _: [], 1),
    "EMPTY_TUPLE": _put(lambda _: ()),
    "EMPTY_SET": _put(lambda _: SetOf([]), CONTAINER_OPS),
    "DICT": _put(lambda machine: Mapping(machine.pop_pairs()), CONTAINER_OPS),
    "LIST": _put(lambda machine: machine.pop_mark()),
    "TUPLE": _put(lambda machine: tuple(machine.pop_mark())),
    "TUPLE1": _put(lambda machine: tuple(machine.pop_some(1))),
    "TUPLE2": _put(lambda machine: tuple(machine.pop_some(2))),
    "TUPLE3": _put(lambda machine: tuple(machine.pop_some(3))),
    "FROZENSET": _put(lambda machine: SetOf(machine.pop_mark(), frozen=True), CONTAINER_OPS),
    "DUP": _put(lambda machine: machine.stack[-1]),
    "BINPERSID": _put(lambda machine: persistent(machine.stack.pop())),
    "STACK_GLOBAL": _put(_stack_global),
    "REDUCE": _put(_reduce, CONTAINER_OPS),
    "NEWOBJ": _put(_reduce, CONTAINER_OPS),
    "NEWOBJ_EX": _put(_new_with_keywords, CONTAINER_OPS),
    "OBJ": _put(_object, CONTAINER_OPS),
    "APPEND": lambda machine, _: _append(machine, machine.pop_some(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.pop_mark()),
    "ADDITEMS": _add_items,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_pairs()),
    "BUILD": _build,
    "MEMOIZE": _memoize,
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
}


def _operations() -> dict[bytes, tuple[_Read | None, _Execute]]:
    codes = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    table: dict[bytes, tuple[_Read | None, _Execute]] = {codes[n]: (None, run) for n, run in _WITHOUT_ARGUMENT.items()}
    table.update({codes[name]: operation for name, operation in _WITH_ARGUMENT.items()})
    return table


_OPERATIONS = _operations()

"""The few constructors that torch puts around tensors in a pickle, known by name and never called."""

from collections.abc import Callable

from ckzd.formats.tree import Call, Global, Mapping, Node, StorageRef, TensorRef

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 1 << 56
MAX_WRAPPERS = 8  # subclass constructors around one tensor
_FROM_TYPE = Global("torch._tensor", "_rebuild_from_type_v2")

DTYPE_BYTES = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32", "qint32", "complex32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16", "bits16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "qint8", "quint8", "bits8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    "complex128": 16,
}
_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt32Storage": "qint32",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "UntypedStorage": "uint8",  # counts bytes; the tensor says what they are
}


class Refused(Exception):
    """What is wrong with the stream; the reader adds where."""


def persistent(pid: Node) -> Node:
    """What a persistent id stands for: a storage, or of torch.save's old format the class of a module."""
    if isinstance(pid, tuple) and len(pid) == 4 and type(pid[0]) is str and pid[0] == "module":
        return pid[1]  # beside its source
    return _storage(pid)


def _storage(pid: Node) -> StorageRef:
    """("storage", type, key, location, number of elements), and in the old format a view, which only torch 0.3 had."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and type(pid[0]) is str and pid[0] == "storage"):
        raise Refused("a persistent id that is no storage")
    if len(pid) > 5 and pid[5] is not None:
        raise Refused("a view of a storage, which torch writes no more: load it and save it again with torch >= 0.4")
    kind, key = pid[1], pid[2]
    if not isinstance(kind, Global) or type(key) is not str:
        raise Refused("a storage without a type or a key")
    dtype = _STORAGE_DTYPES.get(kind.name, kind.name)
    return StorageRef(key, dtype, DTYPE_BYTES.get(dtype, 0), _count(pid[4]))


def construct(function: Node, args: Node, spend: Callable[[int], None]) -> Node:
    """What calling `function` would give: a tensor, a mapping, a size; else the call, recorded.

    `spend` is told of work that grows with the arguments.
    """
    for _ in range(MAX_WRAPPERS):
        if not (isinstance(args, tuple) and len(args) >= 3 and isinstance(function, Global) and function == _FROM_TYPE):
            break
        function, args = args[0], args[2]
    if isinstance(function, Global) and isinstance(args, tuple):
        build = _LOOKED_THROUGH.get(function)
        if build is not None:
            return build(args, spend)
    return Call(function, args)


def _tensor(args: tuple[Node, ...], _spend: Callable[[int], None]) -> Node:
    if len(args) < 4 or not isinstance(args[0], StorageRef):
        raise Refused("a tensor without a storage")
    return _view(args[0], args[0].dtype, args[1:4])


def _tensor_with_dtype(args: tuple[Node, ...], _spend: Callable[[int], None]) -> Node:
    if len(args) < 7 or not isinstance(args[0], StorageRef) or not isinstance(args[6], Global):
        raise Refused("a tensor without a storage or a dtype")
    return _view(args[0], args[6].name, args[1:4])


def _view(ref: StorageRef, dtype: str, place: tuple[Node, ...]) -> TensorRef:
    offset, shape, stride = _count(place[0]), _counts(place[1]), _counts(place[2])
    if len(shape) != len(stride):
        raise Refused(f"a tensor of {len(shape)} dimensions with {len(stride)} strides")
    view = TensorRef(ref, dtype, DTYPE_BYTES.get(dtype, 0), offset, shape, stride)
    if view.element_bytes and ref.element_bytes and all(shape):
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if (last + 1) * view.element_bytes > ref.elements * ref.element_bytes:
            raise Refused(f"a tensor reaches past the end of its storage {ref.key[:40]!a}")
    return view


def _count(value: Node) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ELEMENTS:
        raise Refused("a tensor or storage with a size, stride or offset that is no count")
    return value


def _counts(values: Node) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise Refused("a tensor whose shape or stride is no tuple")
    return tuple(_count(value) for value in values)


def _first_argument(args: tuple[Node, ...], _spend: Callable[[int], None]) -> Node:
    return args[0] if args else ()


def _ordered_dict(args: tuple[Node, ...], spend: Callable[[int], None]) -> Node:
    """OrderedDict(), or OrderedDict([[key, value], ...]) as old Pythons wrote it."""
    pairs = args[0] if args else ()
    if not isinstance(pairs, (list, tuple)):
        raise Refused("a mapping made of something that is no list of pairs")
    spend(len(pairs))
    return Mapping([_pair(pair) for pair in pairs])


def _pair(pair: Node) -> tuple[Node, Node]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise Refused("a mapping made of something that is no pair")
    return pair[0], pair[1]


def _default_dict(_args: tuple[Node, ...], _spend: Callable[[int], None]) -> Node:
    return Mapping()


_LOOKED_THROUGH: dict[Global, Callable[[tuple[Node, ...], Callable[[int], None]], Node]] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_with_dtype,
    Global("torch._utils", "_rebuild_parameter"): _first_argument,
    Global("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
    Global("torch", "Size"): _first_argument,
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("collections", "defaultdict"): _default_dict,
}

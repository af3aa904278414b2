"""Input files made by hand, so that they can lie: zips, torch.save files, safetensors."""

import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
DESCRIPTOR = struct.Struct("<4s3L")


@dataclass(frozen=True)
class ZipRecord:
    """One record; whatever is not None overrides the truth in that place."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0x808
    local_name: str | None = None
    local_nbytes: int | None = None
    descriptor_nbytes: int | None = None
    descriptor_crc: int | None = None
    central_nbytes: int | None = None
    central_packed: int | None = None
    central_offset: int | None = None
    crc: int | None = None
    gap: bytes = b""  # in front of the local header


def make_zip(
    records: Sequence[ZipRecord], *, comment: bytes = b"", entries: int | None = None, shift: int = 0
) -> bytes:
    """A zip as torch writes it (data descriptors, no ZIP64), lies included."""
    body, directory = bytearray(), bytearray()
    for record in records:
        body += record.gap
        offset = len(body) if record.central_offset is None else record.central_offset
        body += _local(record)
        directory += _central(record, offset)
    count = len(records) if entries is None else entries
    end = END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), len(body) + shift, len(comment))
    return bytes(body + directory + end + comment)


def _crc(record: ZipRecord) -> int:
    return zlib.crc32(record.data) if record.crc is None else record.crc


def _size(record: ZipRecord, override: int | None) -> int:
    return len(record.data) if override is None else override


def _local(record: ZipRecord) -> bytes:
    name = (record.name if record.local_name is None else record.local_name).encode()
    late = bool(record.flags & 8)
    crc, nbytes = (0, 0) if late else (_crc(record), len(record.data))
    nbytes = nbytes if record.local_nbytes is None else record.local_nbytes
    header = LOCAL.pack(b"PK\x03\x04", 0, record.flags, record.method, 0, 0, crc, nbytes, nbytes, len(name), 0)
    if not late:
        return header + name + record.data
    said = _size(record, record.descriptor_nbytes)
    packed = len(record.data) if record.method else said
    crc = _crc(record) if record.descriptor_crc is None else record.descriptor_crc
    return header + name + record.data + DESCRIPTOR.pack(b"PK\x07\x08", crc, packed, said)


def _central(record: ZipRecord, offset: int) -> bytes:
    name = record.name.encode()
    nbytes = _size(record, record.central_nbytes)
    packed = nbytes if record.central_packed is None else record.central_packed
    sizes = (_crc(record), packed, nbytes, len(name), 0, 0, 0, 0, 0, offset)
    return CENTRAL.pack(b"PK\x01\x02", 0, 0, record.flags, record.method, 0, 0, *sizes) + name


FLOATS = struct.pack("<100f", *range(100))
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuKdtQ"
ONE_TENSOR = (
    b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00Kd\x85K\x01\x85\x89}tRs."
)

TORCH_RECORDS = (
    ZipRecord("x/data.pkl", ONE_TENSOR),
    ZipRecord("x/byteorder", b"little"),
    ZipRecord("x/data/0", FLOATS),
    ZipRecord("x/version", b"3\n"),
)


def torch_file(
    change: Callable[[ZipRecord], ZipRecord] | None = None, *, only: str = "x/data/0", **whole: object
) -> bytes:
    """{"w": 100 floats} as torch.save writes it, with one record changed."""
    records = [change(record) if change and record.name == only else record for record in TORCH_RECORDS]
    return make_zip(records, **whole)


def lying_zips() -> dict[str, bytes]:
    """Zips that are no torch.save file, by the lie they tell."""
    huge = 0xFFFFFFF0
    lies: dict[str, dict[str, object]] = {
        "central size too large": {"central_nbytes": huge, "central_packed": huge},
        "every size too large": {"central_nbytes": huge, "central_packed": huge, "descriptor_nbytes": huge},
        "central size too small": {"central_nbytes": 300, "central_packed": 300},
        "consistently too small": {"central_nbytes": 300, "central_packed": 300, "descriptor_nbytes": 300},
        "packed differs": {"central_packed": 10},
        "descriptor size": {"descriptor_nbytes": 399},
        "descriptor crc": {"descriptor_crc": 1},
        "local size": {"local_nbytes": 7},
        "other name in local header": {"local_name": "x/data/1"},
        "compressed": {"method": 8},
        "encrypted": {"flags": 0x809},
        "offset of another record": {"central_offset": 0},
        "offset outside": {"central_offset": 0x7FFFFFFF},
        "offset inside another": {"central_offset": 40},
        "gap": {"gap": b"\0" * 64},
        "zip64 without its sizes": {"central_nbytes": 0xFFFFFFFF, "central_packed": 0xFFFFFFFF},
    }
    found = {name: torch_file(lambda record, lie=lie: replace(record, **lie)) for name, lie in lies.items()}
    found["duplicate"] = make_zip([*TORCH_RECORDS, TORCH_RECORDS[2]])
    found["comment"] = torch_file(comment=b"PK\x05\x06 hidden")
    found["more entries than there are"] = torch_file(entries=5)
    found["fewer entries than there are"] = torch_file(entries=3)
    found["directory elsewhere"] = torch_file(shift=1)
    found["bytes in front"] = b"#!" + torch_file()
    found["bytes behind"] = torch_file() + b"\0"
    found["no pickle"] = make_zip(TORCH_RECORDS[1:])
    found["no storage"] = make_zip([TORCH_RECORDS[0], TORCH_RECORDS[1]])
    found["big-endian"] = torch_file(lambda record: replace(record, data=b"big"), only="x/byteorder")
    found["storage shorter than its tensor"] = torch_file(lambda record: replace(record, data=FLOATS[:-4]))
    found["storage longer than its tensor"] = torch_file(lambda record: replace(record, data=FLOATS + b"\0\0\0\0"))
    found["empty"] = make_zip([])
    return found


SafetensorsEntry = tuple[str, Sequence[int], bytes]


def make_safetensors(tensors: Mapping[str, SafetensorsEntry], metadata: Mapping[str, str] | None = None) -> bytes:
    """name -> (dtype, shape, data), in this order."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    return with_header(json.dumps(header), b"".join(data for _, _, data in tensors.values()))


def with_header(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file whose header is this text, padded to 8 bytes."""
    raw = header.encode() if isinstance(header, str) else header
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def lying_safetensors() -> dict[str, bytes]:
    """Files that are no safetensors, by the lie they tell."""
    good = '"dtype":"F32","shape":[2],"data_offsets":[0,8]'
    one = "{" + good + "}"
    return {
        "header of 2^60 bytes": with_header("{}", length=1 << 60),
        "header beyond the limit": with_header("{}", length=100_000_001),
        "header beyond the file": with_header("{}", length=100),
        "header of 0 bytes": with_header("", length=0),
        "too short": b"\x08\0\0",
        "no JSON": with_header("{..."),
        "no UTF-8": with_header(b'{"\xff": 1}'),
        "a list": with_header("[]"),
        "spaces in front": with_header("  {}"),
        "deep": with_header("[" * 50_000),
        "NaN": with_header('{"a": NaN}'),
        "number of many digits": with_header('{"a": ' + "1" * 5000 + "}"),
        "duplicate tensor": with_header(f'{{"a":{one},"a":{one}}}', bytes(8)),
        "duplicate field": with_header('{"a":{"dtype":"F32",' + good + "}}", bytes(8)),
        "unknown field": with_header('{"a":{"more":1,' + good + "}}", bytes(8)),
        "missing field": with_header('{"a":{"dtype":"F32","shape":[2]}}', bytes(8)),
        "metadata no strings": with_header('{"__metadata__":{"a":1}}'),
        "unknown dtype": with_header('{"a":' + one.replace("F32", "F33") + "}", bytes(8)),
        "negative size": with_header('{"a":' + one.replace("[2]", "[-2]") + "}", bytes(8)),
        "negative offset": with_header('{"a":' + one.replace("[0,8]", "[8,0]") + "}", bytes(8)),
        "three offsets": with_header('{"a":' + one.replace("[0,8]", "[0,8,8]") + "}", bytes(8)),
        "size as float": with_header('{"a":' + one.replace("[2]", "[2.0]") + "}", bytes(8)),
        "size as bool": with_header('{"a":' + one.replace("[2]", "[2,true]") + "}", bytes(8)),
        "huge product": with_header(
            '{"a":' + one.replace("[2]", "[72057594037927936,72057594037927936]") + "}", bytes(8)
        ),
        "shape too small": with_header('{"a":' + one.replace("[2]", "[1]") + "}", bytes(8)),
        "trailing byte": with_header('{"a":' + one + "}", bytes(9)),
        "cut off": with_header('{"a":' + one + "}", bytes(7)),
        "hole in front": with_header('{"a":' + one.replace("[0,8]", "[8,16]") + "}", bytes(16)),
        "overlap": with_header(f'{{"a":{one},"b":{one}}}', bytes(8)),
    }

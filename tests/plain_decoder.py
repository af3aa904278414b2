"""A decoder of archives written from FORMAT.md alone: no line of ckzd but the committed tables.

Slow and plain. It shows that the page says enough, and reads old archives when nothing else does any more.
"""

import hashlib
import io
import itertools
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from plain_lanes import PlainLanes
from plain_range_decoder import PlainRangeDecoder

from ckzd.codec.entropy.tables import EXP2_NEGATIVE, FREQUENCY, OCTAVE, SIGMOID

DTYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
SMALLEST = {"float64": 2.0**-149, "float32": 2.0**-149, "bfloat16": 2.0**-133, "float16": 2.0**-24}
SMALLEST_NORMAL = {"float64": 2.0**-126, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
SINGLE = float(np.finfo("f4").max)
LARGEST = {"float64": SINGLE, "float32": SINGLE, "float16": 65504.0, "bfloat16": 2.0**127 * (2 - 2.0**-7)}
ENERGY_STEPS = (362, 431, 512, 609, 724, 861, 1024, 1218, 1448, 1722, 2048, 2435, 2896, 3444, 4096, 4871, 5793, 6889,
                8192, 9742, 11585, 13777, 16384)  # fmt: skip
PASS_OF = (0, 3, 2, 3, 1, 3, 2, 3)
SHAPES = ((60, 12), (12, 96), (24, 96), (96,), (24, 18), (18,))
FIRST_TOKENS = (0, 12, 20, 25, 49, 53, 57)


def unpack(block: bytes, against: bytes = b"") -> bytes:
    if not block:
        return b""
    dictionary = zstandard.ZstdCompressionDict(against, zstandard.DICT_TYPE_RAWCONTENT) if against else None
    return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(block)


def leb(data: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        value, shift, start = value | (byte & 127) << shift, shift + 7, start + 1
        if byte < 128:
            return value, start


def matrix_shape(shape) -> tuple[int, int]:
    return (shape[0] if shape else 1), math.prod(shape[1:])


# Values


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """To nearest, ties to even, once; saturating."""
    values = np.clip(values, -LARGEST[dtype], LARGEST[dtype])
    if dtype != "bfloat16":
        return values.astype(DTYPES[dtype])
    exponent = np.maximum(np.frexp(values)[1], -125)  # values are fraction * 2**exponent, 8 bits of it are kept
    units = np.rint(np.ldexp(values, 8 - exponent))  # np.rint ties to even
    return (np.ldexp(units, exponent - 8).astype(np.float32).view(np.uint32) >> 16).astype("<u2")


def scale_value(code: int) -> float:
    return 0.0 if code == -32768 else math.ldexp(OCTAVE[code % 8], code // 8 - 52)


def fourth_roots(codes: list[int], reach: int | None) -> np.ndarray:
    others = [code for code in codes if code != -32768]
    floor = min(others) - 16 if others else 0
    weighed = [floor if code == -32768 else code for code in codes]
    if reach is not None and others:
        weighed = [max(code, sum(others) // len(others) - reach) for code in weighed]
    return np.array([math.sqrt(math.sqrt(scale_value(code))) for code in weighed])


def is_zero(values: np.ndarray) -> np.ndarray:
    """Of either sign; bfloat16 is its bits."""
    return (values == 0) | ((values == 0x8000) & (values.dtype == np.uint16))


def fractions(data: bytes, levels: np.ndarray) -> np.ndarray:
    """Where levels restore inside their step; `data` begins with the centres of 1 to 3."""
    magnitude = np.abs(levels.astype(float))
    for level in (1, 2, 3):
        magnitude[np.abs(levels) == level] = (level - 0.5) + data[level - 1] / 256
    return np.copysign(magnitude, levels)


def low_bits(data: bytes, elements: int) -> tuple[int, list[int], int]:
    """How many bits, the low part of every level, and where the plane starts."""
    count = data[0]
    end = 1 + -(-count * elements // 8)
    bits = "".join(f"{byte:08b}" for byte in data[1:end])
    return count, [int(bits[count * k : count * (k + 1)] or "0", 2) for k in range(elements)], end


# Frames and factors, in 64-bit integers: the page says that no sum reaches 2**53


def shifted(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Integers times 2**-bits, to the nearest, ties to even."""
    half, odd = 1 << (bits - 1), (numbers >> bits) & 1
    return (numbers + (half - 1) + odd) >> bits


def whole_numbers(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.int64)


def blocks_of(length: int) -> list[slice]:
    count = -(-length // 256)
    return [slice(length * b // count, length * (b + 1) // count) for b in range(count)]


def unit(size: int) -> np.ndarray:
    return np.eye(size, dtype=np.int64)


def refined(vectors: np.ndarray, bits: int) -> np.ndarray:
    return shifted(vectors @ (3 * (unit(len(vectors)) << bits) - shifted(vectors.T @ vectors, bits)), bits + 1)


def scaled_row(row: np.ndarray) -> np.ndarray:
    return whole_numbers(np.ldexp(row.astype(float), 22 - int(np.abs(row).max()).bit_length()))


def orthonormal(rows: np.ndarray) -> np.ndarray:
    done = np.zeros((0, rows.shape[1]), np.int64)
    for start in range(0, len(rows), 16):
        panel = np.array([scaled_row(row) for row in rows[start : start + 16]])
        for _ in range(2):
            panel = panel - shifted(shifted(panel @ done.T, 18) @ done, 18)
            panel = np.array([scaled_row(row) for row in panel])
            for i, row in enumerate(panel):
                if not row.any():
                    row[start + i] = 1
                row[:] = whole_numbers(row * (2.0**18 / math.sqrt(int(row @ row))))
                for k in range(i + 1, len(panel)):
                    panel[k] -= shifted(shifted(panel[k] @ row, 18) * row, 18)
        done = np.vstack([done, panel])
    return done


def nearest_code(value: float) -> int:
    mantissa, exponent = math.frexp(value)
    values = [number * 2.0**-52 for number in OCTAVE] + [2.0]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    return 8 * (exponent - 1) + sum(middle <= 2 * mantissa for middle in middles)


def learning_pass(vectors, codes, seen: np.ndarray, slack: int | None) -> tuple[np.ndarray, np.ndarray]:
    size, covariance = len(vectors), seen @ seen.T
    trace = int(np.trace(covariance))
    if not trace:
        return vectors, codes
    energy = 0.75 * (covariance * (size / trace))
    for i, code in enumerate(codes.tolist()):
        energy[i, i] += 0.25 * scale_value(code) + 2.0**-4
    whole = whole_numbers(energy * 2.0**14)
    turn = orthonormal(whole @ (whole + (unit(size) << 14))).T
    energies = np.maximum((turn * shifted(whole @ turn, 18)).sum(0) * 2.0**-32, 2.0**-10)
    order = sorted(range(size), key=lambda k: -energies[k])
    turned = shifted(vectors @ turn[:, order], 18)
    most = np.abs(shifted(turned.T @ turned, 14) - (unit(size) << 14)).max()
    if most > 1 << 10:
        return vectors, codes
    if slack is None or most > 2.0 ** (14 - slack):
        turned = refined(turned, 14)
    learned_codes = [max(nearest_code(energies[k]), -45) for k in order]
    return np.clip(turned, -32767, 32767), np.array(learned_codes)


class Side:
    """Vectors and codes of the rows or columns of a matrix."""

    def __init__(self, length: int, stored: tuple[np.ndarray, np.ndarray] | None) -> None:
        self.places, self.new = blocks_of(length), stored is None
        self.vectors = [unit(place.stop - place.start) for place in self.places]
        self.vectors = [vectors << 14 for vectors in self.vectors]
        self.codes = np.zeros(length, np.int64)
        if stored is not None:
            self.vectors = [stored[0][p, : p.stop - p.start].astype(np.int64) for p in self.places]
            self.codes = stored[1].astype(np.int64)

    def gains(self) -> np.ndarray:
        return np.array([scale_value(code // 4) for code in self.codes.tolist()])

    def turned_back(self, numbers: np.ndarray) -> np.ndarray:
        parts = [shifted(vectors @ numbers[p], 14) for p, vectors in zip(self.places, self.vectors, strict=True)]
        return np.concatenate(parts)

    def turned(self, numbers: np.ndarray) -> np.ndarray:
        parts = [shifted(vectors.T @ numbers[p], 14) for p, vectors in zip(self.places, self.vectors, strict=True)]
        return np.concatenate(parts)

    def learn(self, numbers: np.ndarray, slack: int | None) -> None:
        for b, place in enumerate(self.places):
            seen = numbers[place]
            for _ in range(3 if self.new else 1):
                before = self.vectors[b]
                self.vectors[b], self.codes[place] = learning_pass(before, self.codes[place], seen, slack)
                seen = shifted(shifted(before.T @ self.vectors[b], 14).T @ seen, 14)

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        vectors = np.zeros((len(self.codes), max(len(v) for v in self.vectors)), np.int16)
        for place, block in zip(self.places, self.vectors, strict=True):
            vectors[place, : len(block)] = block
        return vectors, self.codes.astype(np.int16)


class Frame:
    """Both sides of a matrix; from a reconstruction that has it, else new."""

    def __init__(self, path, form, kept: "Reconstruction") -> None:
        found = [kept.get(path, field) for field in ("left", "left_energy", "right", "right_energy")]
        usable = all(array is not None for array in found) and (found[1].size, found[3].size) == form
        self.known = usable
        self.left = Side(form[0], (found[0], found[1]) if usable else None)
        self.right = Side(form[1], (found[2], found[3]) if usable else None)

    def coefficients(self, fractions: np.ndarray) -> np.ndarray:
        gains = self.left.gains()[:, None] * self.right.gains()[None, :]
        fixed = whole_numbers((fractions / gains) * 2.0**12)
        assert np.abs(fixed).max(initial=0) <= 1 << 26
        return fixed

    def residual(self, fixed: np.ndarray) -> np.ndarray:
        return self.right.turned_back(self.left.turned_back(fixed).T).T * 2.0**-12

    def turned(self, fixed: np.ndarray) -> np.ndarray:
        return self.right.turned(self.left.turned(fixed).T).T

    def levels(self, turned: np.ndarray) -> np.ndarray:
        gains = self.left.gains()[:, None] * self.right.gains()[None, :]
        return np.clip(whole_numbers((turned * 2.0**-12) * gains), -127, 127)

    def learn(self, fixed: np.ndarray, slack: int | None) -> None:
        limit = min(1 << 17, math.isqrt((1 << 44) // max(fixed.shape)))
        seen = np.clip(shifted(fixed, 6), -limit, limit)
        self.left.learn(seen, slack)
        self.right.learn(seen.T, slack)


def factored(data: bytes, form: tuple[int, int], models: "Models") -> np.ndarray:
    """A sum of outer products of integer vectors, in 2**-12 steps."""
    count, (rows, columns) = data[0], form
    codes, start, low = data[1 : 1 + count], 1 + count, []
    for _ in codes:
        sides = []
        for length in form:
            bits, numbers, nbytes = low_bits(data[start:], length)
            sides.append((bits, numbers))
            start += nbytes
        low.append(sides)
    expected = [
        [
            min(127, math.floor(4 * scale_value(code - nearest_code(length) // 2 - 8 * sides[side][0])))
            for code, sides in zip(codes, low, strict=True)
        ]
        for side, length in enumerate(form)
    ]
    guide = np.array([expected[0]] * rows + [expected[1]] * columns, np.int8)
    levels = plane(data[start:], (rows + columns, count), 0, models, guide).astype(np.int64)
    total = np.zeros(form, np.int64)
    for k, (code, sides) in enumerate(zip(codes, low, strict=True)):
        left, right = (
            part * 2**bits + np.array(numbers, np.int64)
            for part, (bits, numbers) in zip((levels[:rows, k], levels[rows:, k]), sides, strict=True)
        )
        assert max(np.abs(2 * left + 1).max(), np.abs(2 * right + 1).max()) < 1 << 16
        total += np.outer(left, right) * math.floor(scale_value(-code) * 2**20)
    return shifted(total, 8)


def exact(data: bytes, elements: int, itemsize: int, reference: bytes | None) -> bytes:
    if data[:2] == b"\x80\x00":
        return aligned(data, elements, itemsize, reference)
    lengths, start = [], 0
    for _ in range(itemsize):
        length, start = leb(data, start)
        lengths.append(length)
    planes = []
    for length in lengths:
        block = data[start : start + length]
        planes.append(block if length == elements else unpack(block))
        start += length
    bits, top = 8 * itemsize, 1 << (8 * itemsize - 1)
    before = [int.from_bytes(reference[k : k + itemsize], "little") for k in range(0, len(reference or b""), itemsize)]
    found = bytearray()
    for position in range(elements):
        value = int.from_bytes(bytes(plane[position] for plane in planes), "big")
        if itemsize > 1 and reference is None:
            value = value >> 1 | (value & 1) << (bits - 1)
        elif itemsize > 1:
            difference = value >> 1 if value % 2 == 0 else -(value >> 1) - 1
            other = before[position]
            ordered = other ^ (2 * top - 1) if other & top else other | top
            ordered = (ordered + difference) % (1 << bits)
            value = ordered ^ top if ordered & top else ordered ^ (2 * top - 1)
        found += value.to_bytes(itemsize, "little")
    return bytes(found)


def aligned(data: bytes, elements: int, itemsize: int, reference: bytes | None) -> bytes:
    bits = 8 * itemsize
    before = [int.from_bytes(reference[k : k + itemsize], "little") for k in range(0, len(reference or b""), itemsize)]
    classes = [value >> (bits - 9) & 255 for value in before] or [0] * elements
    predicted, start = prediction(data, 2, elements)
    found = bytearray()
    for first in range(0, elements, 1 << 18):
        count = min(1 << 18, elements - first)
        differences, start = chunk(data, start, classes[first : first + count], bits)
        for position, difference in enumerate(differences, first):
            if reference is None:
                value = (difference + predicted[position]) % (1 << bits)
                value = value >> 1 | (value & 1) << (bits - 1)
            else:
                inverted, top = (1 << bits) - 1, 1 << (bits - 1)
                other = before[position]
                value = (difference + (other ^ inverted if other & top else other | top)) % (1 << bits)
                value = value ^ top if value & top else value ^ inverted
            found += value.to_bytes(itemsize, "little")
    return bytes(found)


def prediction(data: bytes, start: int, elements: int) -> tuple[list[int], int]:
    columns, start = leb(data, start)
    if columns == 0:
        return [0] * elements, start
    length, start = leb(data, start)
    unit, factor_unit, factors = data[start : start + 3]
    rows, block = elements // columns, unpack(data[start + 3 : start + 3 + length])
    terms = np.frombuffer(block[: 2 * (rows + columns)], "<i2").tolist()
    rest = np.frombuffer(block[2 * (rows + columns) :], np.int8).astype(np.int64)
    left, right = rest[: factors * rows].reshape(factors, rows), rest[factors * rows :].reshape(factors, columns)
    products = (left.T @ right).tolist()
    predicted = [
        ((terms[i] + terms[rows + j]) << unit) + (products[i][j] << factor_unit)
        for i in range(rows)
        for j in range(columns)
    ]
    return predicted, start + 3 + length


def chunk(data: bytes, start: int, classes: list[int], bits: int) -> tuple[list[int], int]:
    lengths = []
    for _ in range(3):
        length, start = leb(data, start)
        lengths.append(length)
    members: dict[int, list[int]] = {}
    for position, number in enumerate(classes):
        members.setdefault(number, []).append(position)
    cuts = {}
    for number in sorted(members):
        cuts[number] = data[start], data[start + 1]
        start += 2
    sizes = [len(classes), 0, 0]
    for number, (k, _) in cuts.items():
        sizes[1] += len(members[number]) * len(range(k + 8, bits, 8))
        sizes[2] += len(members[number]) * (k // 8) + -(-len(members[number]) // 8) * (k % 8)
    blocks = []
    for length, size in zip(lengths, sizes, strict=True):
        block = data[start : start + length]
        blocks.append(iter(block if length == size else unpack(block)))
        start += length
    differences = [0] * len(classes)
    for number, (k, offset) in cuts.items():
        for position, value in zip(members[number], joined(len(members[number]), k, bits, blocks), strict=True):
            differences[position] = value - (offset << k)
    return differences, start


def joined(count: int, k: int, bits: int, blocks: list[Iterator[int]]) -> list[int]:
    symbols, above, below = blocks
    values = [next(symbols) << k for _ in range(count)]
    for place in range(k + 8, bits, 8):
        values = [value | next(above) << place for value in values]
    for place in range(k - 8, -1, -8):
        values = [value | next(below) << place for value in values]
    for bit in range(k % 8):
        packed = [next(below) for _ in range(-(-count // 8))]
        values = [value | (packed[i // 8] >> (7 - i % 8) & 1) << bit for i, value in enumerate(values)]
    return values


# Models


class Lstm:
    """Frequencies of one context after another."""

    def __init__(self, data: bytes) -> None:
        arrays, start = [], 0
        for shape in SHAPES:
            size = math.prod(shape)
            arrays.append(np.frombuffer(data[start : start + size], np.int8).reshape(shape).astype(np.int64))
            start += size
        self.embedding, self.gates, self.hidden, self.bias, self.output, self.output_bias = arrays
        self.states: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def state(self, tokens: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        if not tokens:
            return np.zeros(24, np.int64), np.zeros(24, np.int64)
        if tokens not in self.states:
            hidden, cell = self.state(tokens[:-1])
            z = hidden @ self.hidden + 4 * (self.embedding[tokens[-1]] @ self.gates) + 128 * self.bias
            i, f, o, g = z.reshape(4, 24)
            cell = (sigmoid(f) * cell >> 15) + (sigmoid(i) * tanh(g) >> 18)
            self.states[tokens] = np.minimum(sigmoid(o) * tanh(cell) >> 23, 127), cell
        return self.states[tokens]

    def row(self, kind: int, number: int, density: int, classes: tuple[int, ...]) -> list[int]:
        fields = (kind * 4 + number, density, *classes)
        hidden, _ = self.state(tuple(first + c for first, c in zip(FIRST_TOKENS, fields, strict=True)))
        logits = hidden @ self.output + 128 * self.output_bias
        below = (logits.max() - logits).tolist()
        return [(EXP2_NEGATIVE[(b >> 6) & 63] >> min(b >> 12, 30)) + 1 for b in below]


def sigmoid(z: np.ndarray) -> np.ndarray:
    index = np.clip((z + 64) >> 7, -256, 256)
    table = np.array(SIGMOID)
    return np.where(index >= 0, table[np.abs(index)], 32768 - table[np.abs(index)])


def tanh(z: np.ndarray) -> np.ndarray:
    return 2 * sigmoid(2 * z) - 32768


class Models:
    """The tables and the LSTM of an archive."""

    def __init__(self, tables: bytes, lstm: bytes) -> None:
        size = 2 + 120 * 18
        records = [tables[start : start + size] for start in range(0, len(tables), size)]
        self.tables = {(r[0], r[1]): np.frombuffer(r[2:], np.uint8).reshape(120, 18) for r in records}
        self.lstm = Lstm(lstm) if lstm else None

    def row(self, coder: int, codes: bytes, place: tuple[int, int, int], classes: tuple[int, ...]) -> list[float]:
        kind, number, density = place
        if coder == 2:
            return [float(FREQUENCY[code]) for code in codes]
        table = self.tables.get((kind, density))
        row = [1] * 18 if table is None else [FREQUENCY[code] for code in table[classes[0] * 24 + classes[1]].tolist()]
        if coder == 4:
            row = [t * s // 256 + 1 for t, s in zip(row, self.lstm.row(kind, number, density, classes), strict=True)]
        if codes:
            row = [f * FREQUENCY[code] // 256 + 1 for f, code in zip(row, codes, strict=True)]
        return [float(f) for f in row]


# Planes


class Contexts:
    """Classes of one plane's elements, pass by pass."""

    def __init__(self, shape, total: int, guide, previous, second) -> None:
        self.shape, self.size, self.total = shape, shape[0] * shape[1], total
        self.guide, self.previous, self.second = guide, previous, second
        self.guided = None if guide is None else np.minimum(np.abs(guide.astype(int)), 15)
        self.known = np.zeros(shape, int)
        rows, columns = shape
        self.pass_of = np.array([PASS_OF[(i + j) % 8] for i in range(rows) for j in range(columns)]).reshape(shape)
        self.density = sum(step <= 256 * total // max(self.size, 1) for step in (4, 11, 28, 64, 128, 256, 512))

    def energies(self, number: int, axis: int) -> list[int]:
        """Of each row (axis 1) or column (axis 0)."""
        found = []
        earlier = (self.pass_of < number).sum(axis)
        whole = 0 if self.guided is None else int(self.guided.sum())
        for line, coded in enumerate(self.known.sum(axis).tolist()):
            energy, weight = self.share(coded, self.total), int(earlier[line])
            if whole:
                energy += self.share(int(self.guided.sum(axis)[line]), whole) // 2
                weight += self.shape[axis] // 2
            found.append((energy + 8 * 4096) // (weight + 8))
        return found

    def share(self, found: int, total: int) -> int:
        return found * ((1 << 30) * self.size // max(total, 1)) // (1 << 18)

    def around(self, values: np.ndarray, i: int, j: int, average: int, total: int) -> int:
        rows, columns = self.shape
        found = -int(values[i, j])
        for y in range(max(i - 1, 0), min(i + 2, rows)):
            found += int(values[y, max(j - 1, 0) : min(j + 2, columns)].sum())
        return sum(found > step * average * total // (256 * self.size) for step in (141, 226, 333))

    def classes(self, i: int, j: int, number: int, rows: list[int], columns: list[int]) -> tuple[int, ...]:
        guided = around = 0
        if self.guide is not None:
            level = int(self.guide[i, j])
            guided = 0 if level == 0 else (1 if abs(level) <= 2 else 3) + (level < 0)
            around = self.around(self.guided, i, j, 8, int(self.guided.sum()))
        energy = sum(step <= rows[i] * columns[j] // 4096 for step in ENERGY_STEPS)
        if self.second is not None:
            energy = min(max(self.second(i, j, energy), 0), 23)
        neighbours = self.around(self.earlier, i, j, (0, 0, 2, 4)[number], self.total)
        previous = 0 if self.previous is None else min(abs(int(self.previous[i, j])), 2)
        return guided, energy, around, neighbours, previous


def packed_escapes(data: bytes):
    """Levels beyond the alphabet, one by one."""
    order = data[0]
    length, start = leb(data, 1)
    zeros = "".join(f"{byte:08b}" for byte in data[start : start + length]).split("1")[:-1]
    rest = iter("".join(f"{byte:08b}" for byte in data[start + length :]))
    for run in zeros:
        sign = next(rest)
        magnitude = int("1" + "".join(next(rest) for _ in range(len(run) + order)), 2) - 2**order + 9
        yield -magnitude if sign == "1" else magnitude


class Second:
    """What the scales of a `kmeans` moment make of the class of energy."""

    def __init__(self, scales) -> None:
        self.rows, self.columns = ([int(code) for code in codes] for codes in scales)
        used = [code for code in self.rows if code != -32768]
        self.mean = 0
        if used:
            total = sum(math.floor(2**30 * scale_value(code - max(used))) for code in used)
            self.mean = max(used) + nearest_code(total / len(used) * 2**-30)

    def half_octaves(self, i: int, j: int) -> int:
        return min(max((self.rows[i] + self.columns[j] - self.mean + 2) // 4, -64), 63)

    def for_first(self, i: int, j: int, energy: int) -> int:
        return energy + self.half_octaves(i, j)

    def for_second(self, i: int, j: int, _energy: int) -> int:
        return 12 + self.half_octaves(i, j)


def plane(data: bytes, shape, kind: int, models: Models, guide=None, previous=None, second=None) -> np.ndarray:  # noqa: PLR0917
    """Levels (R, C)."""
    rows, columns = shape
    if data[0] == 0:
        return np.zeros(shape, np.int16)
    if data[0] == 1:
        return np.frombuffer(data[1:], "<i2").reshape(shape)
    coder = data[0] & 15
    total, start = leb(data, 1)
    escape_bytes, start = leb(data, start)
    codes = data[start : start + 18] if data[0] & 128 else b""
    start += len(codes)
    block = data[start : start + escape_bytes]
    escapes = packed_escapes(block) if data[0] & 64 else iter(np.frombuffer(unpack(block), "<i2").tolist())
    rest = data[start + escape_bytes :]
    words = PlainLanes(rest, rows * columns) if data[0] & 16 else PlainRangeDecoder(rest)
    contexts = Contexts(shape, total, guide, previous, second if data[0] & 32 else None)
    levels, cached = np.zeros(shape, np.int16), {}
    for number in range(4):
        row_energies, column_energies = contexts.energies(number, 1), contexts.energies(number, 0)
        contexts.earlier = contexts.known.copy()
        words.begin_pass()
        for i in range(rows):
            for j in range(columns):
                if contexts.pass_of[i, j] != number:
                    continue
                classes = contexts.classes(i, j, number, row_energies, column_energies)
                if (number, classes) not in cached:
                    cached[number, classes] = models.row(coder, codes, (kind, number, contexts.density), classes)
                symbol = words.symbol(cached[number, classes])
                level = next(escapes) if symbol == 17 else (symbol + 1) // 2 if symbol % 2 else -(symbol // 2)
                levels[i, j] = level
                contexts.known[i, j] = min(abs(level), 15)
    words.finish()
    return levels


# Archives


class Reconstruction:
    """Arrays by path and field, in order."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    @staticmethod
    def name(path, field: str) -> str:
        return "\0".join(part.replace("\\", "\\\\").replace("\0", "\\0") for part in (*path, field))

    def put(self, path, field: str, array: np.ndarray) -> None:
        self.arrays[self.name(path, field)] = np.ascontiguousarray(array)

    def get(self, path, field: str) -> np.ndarray | None:
        return self.arrays.get(self.name(path, field))

    def blob(self, field: str) -> bytes:
        return self.arrays[field].tobytes() if field in self.arrays else b""

    def to_bytes(self) -> bytes:
        body, table = bytearray(b"CKZREC1\n"), {}
        for name, array in self.arrays.items():
            table[name] = [array.dtype.str, list(array.shape), len(body)]
            body += array.tobytes()
        text = json.dumps(table, separators=(",", ":")).encode()
        return bytes(body) + text + struct.pack("<Q", len(text))


class PlainArchive:
    """One archive, decoded against its reference's reconstruction."""

    def __init__(self, path: Path | io.BytesIO, reference: Reconstruction | None, folder: Path | None = None) -> None:
        folder = folder or (Path(path).parent if isinstance(path, Path) else None)
        with zipfile.ZipFile(path) as file:
            self.entries = {name: file.read(name) for name in file.namelist()}
        self.manifest = json.loads(self.entries["manifest.json"])
        for name in [name for name in self.entries if name.startswith("carried/")]:
            reference = PlainArchive(io.BytesIO(self.entries[name]), reference, folder).own
        self.reference = reference or self._base_model(folder)
        first, second = struct.unpack_from("<II", self.entries["index"])
        block = self.entries["index"][8 : 8 + first]
        self.layout_json = unpack(block, self.reference.blob("layout"))
        self.layout = json.loads(self.layout_json)
        self.layout["tensors"] = [tensor[:4] for tensor in self.layout["tensors"]]  # no stack is needed to decode
        self.index = json.loads(unpack(self.entries["index"][8 + first : 8 + first + second]))
        self.triples = {number: triple for triple in self.layout["triples"] for number in triple}
        self.states = dict(self.layout.get("states", []))
        self.predictions = {number: how for number, *how in self.index.get("predictions", [])}
        self.masks = {number: place for number, *place in self.index.get("zeros", [])}
        self.reach = self.index.get("reach")
        self.skeleton = unpack(self.entries["skeleton"], self.reference.blob("skeleton"))
        self.lstm = self._lstm()
        self.models = Models(unpack(self.entries.get("tables", b"")), self.lstm)
        self.scales = self._scales()
        self.own = Reconstruction()
        for number in sorted(self.layout["kept"], key=self._waits):
            self._keep(number)
        for field, data in (("lstm", self.lstm), ("skeleton", self.skeleton), ("layout", self.layout_json)):
            self.own.put((), field, np.frombuffer(data, np.uint8))

    def _base_model(self, folder: Path | None) -> Reconstruction:
        """Of files that lie beside the archive; without a base model it is empty."""
        made = Reconstruction()
        if "base_model" in self.manifest:
            files = []
            for file in self.manifest["base_model"]["files"]:
                data = (folder / file["name"]).read_bytes()
                assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
                files.append(data)
            for name, dtype, shape, number, offset, stored in json.loads(self.entries["base_model"])["tensors"]:
                values = np.frombuffer(files[number], DTYPES[stored], math.prod(shape), offset).reshape(shape)
                if dtype != stored:
                    wide = widened(values, stored)
                    values = rounded(np.where(np.isfinite(wide), wide, 0.0), dtype)
                made.put(name, "weights", values)
            for field in ("lstm", "skeleton", "layout"):
                made.put((), field, np.zeros(0, np.uint8))
        return made

    def _lstm(self) -> bytes:
        if "lstm" not in self.entries:
            return b""
        difference = np.frombuffer(unpack(self.entries["lstm"]), np.uint8)
        before = np.frombuffer(self.reference.blob("lstm"), np.uint8)
        return (difference + (before if before.size else np.uint8(0))).tobytes()

    def _scales(self) -> dict[int, tuple[list[int], list[int]]]:
        shapes = {triple[0]: matrix_shape(self.layout["tensors"][triple[0]][2]) for triple in self.layout["triples"]}
        if not shapes:
            return {}
        codes = plane(self.entries["scales"], (sum(map(sum, shapes.values())), 1), 0, Models(b"", b""))[:, 0]
        found, start = {}, 0
        for number in sorted(shapes, key=lambda number: number in self.predictions):
            parts, others = [], found.get(self.predictions.get(number, [None])[0])
            for side, (field, length) in enumerate(zip(("rows", "columns"), shapes[number], strict=True)):
                before = self.reference.get(self.layout["tensors"][number][0], field)
                before = before if others is None else np.array(others[side], np.int16)
                usable = before is not None and before.shape == (length,)
                own = codes[start : start + length] + (before if usable else np.int16(0))
                parts.append(own.astype(np.int16).tolist())
                start += length
            found[number] = tuple(parts)
        return found

    def _stream(self, number: int) -> bytes:
        _, entry, offset, nbytes = self.index["codes"][number]
        return self.entries[entry][offset : offset + nbytes]

    def _before(self, number: int) -> np.ndarray | None:
        path, dtype, shape, _ = self.layout["tensors"][number]
        found = self.reference.get(path, "weights")
        usable = found is not None and list(found.shape) == shape and found.dtype == np.dtype(DTYPES[dtype])
        return found if usable else None

    def _keep(self, number: int) -> None:
        path, dtype, shape, _ = self.layout["tensors"][number]
        method, *place = self.index["codes"][number]
        before, levels, frame = self._before(number), None, Frame(path, matrix_shape(shape), self.reference)
        self.trend = None
        if method == "whole":
            values, frame = rounded(self._whole(number), dtype).reshape(shape), None
        elif method in ("scalar", "framed", "factored", "kmeans"):
            levels, residual = self._residual(number, method, frame)
            base = widened(before if number not in self.predictions else self._predicted(number), dtype)
            values = rounded(np.where(np.isfinite(base), base, 0.0) + residual.reshape(shape), dtype)
        elif method in ("copy", "cast"):
            other, other_dtype, *_ = self.layout["tensors"][place[0]]
            found = self.own.get(other, "weights").reshape(shape)
            values = found if method == "copy" else rounded(widened(found, other_dtype), dtype)
        elif method == "ulps":
            levels, values = self._ulps(number, before)
        else:
            values = before if method == "same" else self._exactly(number, before if method == "delta" else None)
        self.own.put(path, "weights", self._masked(number, values, before))
        if levels is not None:
            self.own.put(path, "levels", np.clip(levels, -127, 127).astype(np.int8))
        if number in self.scales:
            for field, codes in zip(("rows", "columns"), self.scales[number], strict=True):
                self.own.put(path, field, np.array(codes, np.int16))
        if method in ("framed", "factored") or (frame is not None and frame.known):
            self._keep_frame(path, frame)
        if self.trend is not None:
            self.own.put(path, "trend", self.trend)

    def _waits(self, number: int) -> bool:
        """Whether a kept tensor follows from others of this archive, or is a copy of one that does."""
        method, *place = self.index["codes"][number]
        return method == "cast" or number in self.predictions or (method == "copy" and self._waits(place[0]))

    def _predicted(self, number: int) -> np.ndarray:
        other, own, now, before = self.predictions[number]
        dtype, shape = self.layout["tensors"][number][1:3]
        other_path, other_dtype, *_ = self.layout["tensors"][other]
        total = now * widened(self.own.get(other_path, "weights"), other_dtype).reshape(shape)
        for times, tensor in ((own, number), (before, other)):
            if times:
                total = total + times * widened(self._before(tensor), self.layout["tensors"][tensor][1]).reshape(shape)
        return rounded(total, dtype)

    def _exactly(self, number: int, before: np.ndarray | None) -> np.ndarray:
        _, dtype, shape, nbytes = self.layout["tensors"][number]
        itemsize = np.dtype(DTYPES[dtype]).itemsize
        reference = None if before is None else before.tobytes()
        data = exact(self._stream(number), nbytes // itemsize, itemsize, reference)
        return np.frombuffer(data, DTYPES[dtype]).reshape(shape)

    def _ulps(self, number: int, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The trace and the values."""
        path, dtype, shape, _ = self.layout["tensors"][number]
        data, form = self._stream(number), matrix_shape(shape)
        words, guide = before.view("<u2").reshape(form).astype(int), self._guide(path, form)

        def finer(i: int, j: int, energy: int) -> int:
            unsigned = int(words[i, j]) & 0x7FFF
            exponent = unsigned >> {"bfloat16": 7, "float16": 10}[dtype]
            return energy + (min(max(4 * (data[0] - exponent), -64), 63) if unsigned else -64)

        levels = plane(data[1:], form, 3, self.models, guide, None, finer).astype(int)
        moved = (np.where(words & 0x8000, words ^ 0xFFFF, words | 0x8000) + levels) & 0xFFFF
        values = (
            np.where(moved & 0x8000, moved ^ 0x8000, moved ^ 0xFFFF).astype("<u2").view(DTYPES[dtype]).reshape(shape)
        )
        numbers, earlier = widened(values.reshape(form), dtype), widened(before.reshape(form), dtype)
        if number in self.scales and self.index["step"] and np.isfinite([numbers, earlier]).all():
            rows, columns = self._roots(number)
            weighed = (np.where(numbers != 0, numbers - earlier, 0.0) * rows) * columns
            self.trend = np.clip(np.rint(32 * (weighed / self.index["step"])), -127, 127).astype(np.int8)
        old = np.zeros(form, int) if guide is None else np.clip(guide.astype(int), -3, 3)
        return np.where(levels != 0, 3 * np.sign(levels), old - np.sign(old)), values

    def _masked(self, number: int, values: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        if number not in self.masks:
            return values
        expected = np.zeros(values.shape, bool) if before is None else is_zero(before)
        dtype = self.layout["tensors"][number][1]
        values = np.where(is_zero(values), rounded(np.array(SMALLEST_NORMAL[dtype]), dtype), values)
        return np.where(self._mask(number, expected), values.dtype.type(0), values)

    def _mask(self, number: int, expected: np.ndarray) -> np.ndarray:
        """Where a tensor is 0; the stream says where that is not as expected."""
        if not self.masks[number]:
            return expected
        entry, offset, nbytes = self.masks[number]
        packed = unpack(self.entries[entry][offset : offset + nbytes])
        bits = "".join(f"{byte:08b}" for byte in packed)[: expected.size]
        return expected ^ np.array([bit == "1" for bit in bits]).reshape(expected.shape)

    def _keep_frame(self, path, frame: Frame) -> None:
        for name, side in (("left", frame.left), ("right", frame.right)):
            vectors, energies = side.stored()
            self.own.put(path, name, vectors)
            self.own.put(path, f"{name}_energy", energies)

    def _roots(self, weight: int) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = (fourth_roots(codes, self.reach) for codes in self.scales[weight])
        return rows[:, None], columns[None, :]

    def _step(self, weight: int, name: str) -> float:
        return self.index[name] / 2 ** dict(self.index.get("halvings", [])).get(weight, 0)

    def _whole(self, number: int) -> np.ndarray:
        path, _, shape, _ = self.layout["tensors"][number]
        data, form = self._stream(number), matrix_shape(shape)
        count, low, start = low_bits(data, math.prod(form))
        guides = self._guide(path, form), self._guide(layer_before(path), form)
        high = plane(data[start:], form, 0, self.models, *guides).astype(int)
        levels = high * 2**count + np.array(low, int).reshape(form)
        rows, columns = self._roots(number)
        return ((levels * self._step(number, "whole_step")) / rows) / columns

    def _residual(self, number: int, method: str, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        path, _, shape, _ = self.layout["tensors"][number]
        data, form = self._stream(number), matrix_shape(shape)
        guide, previous = self._guide(path, form), self._guide(layer_before(path), form)
        if method == "kmeans":
            levels, values = self._codebook(data, form, 0, guide, previous)
            return levels, values
        if method == "factored":
            fixed = factored(data, form, self.models)
            found, turned = fixed * 2.0**-12, frame.turned(fixed)
            levels = frame.levels(turned)
            frame.learn(turned, self.index.get("slack"))
        else:
            levels = plane(data[3:], form, 0, self.models, guide, previous)
            found = fractions(data, levels)
        if method == "framed":
            fixed = frame.coefficients(found)
            found = frame.residual(fixed)
            frame.learn(fixed, self.index.get("slack"))
        if method in ("framed", "factored"):
            self.trend = np.clip(np.rint(32 * found), -127, 127).astype(np.int8)
        rows, columns = self._roots(number)
        return levels, ((found * self._step(number, "step")) / rows) / columns

    def _guide(self, path, form) -> np.ndarray | None:
        found = None if path is None else self.reference.get(path, "levels")
        return found if found is not None and found.shape == form else None

    def _codebook(self, data: bytes, form, kind: int, guide=None, previous=None, second=None):  # noqa: PLR0917
        size, below = data[0], data[1]
        centres = np.frombuffer(data[2 : 2 + 4 * size], "<f4").astype(float).tolist()
        table = {0: 0.0} | {(k - below if k < below else k - below + 1): centre for k, centre in enumerate(centres)}
        levels = plane(data[2 + 4 * size :], form, kind, self.models, guide, previous, second)
        return levels, np.vectorize(table.__getitem__, otypes=[float])(levels)

    def payload(self, number: int) -> bytes:
        """The restored bytes of a tensor."""
        path, dtype, _, nbytes = self.layout["tensors"][number]
        kept = self.own.get(path, "weights")
        if kept is not None:
            return kept.tobytes()
        if number in self.triples and self.index["codes"][number][0] != "exact":
            weight, first, *seconds = self.triples[number]
            if not seconds:
                restored = self._momentum(weight, first)
            else:
                restored = (self._first if number == first else self._second)(weight, first, *seconds)
            if first in self.masks:
                energy = self._second(weight, first, *seconds) if seconds else self._product(weight)
                weights = self.own.get(self.layout["tensors"][weight][0], "weights").reshape(energy.shape)
                zeros = self._mask(first, is_zero(weights) | is_zero(energy))
                restored = np.where(zeros.reshape(restored.shape), restored.dtype.type(0), restored)
            return restored.tobytes()
        if self.index["codes"][number][0].startswith("state_"):
            return self._state(number)
        itemsize = np.dtype(DTYPES[dtype]).itemsize if dtype in DTYPES else 1
        return exact(self._stream(number), nbytes // itemsize, itemsize, None)

    def _state(self, number: int) -> bytes:
        _, dtype, shape, _ = self.layout["tensors"][number]
        data, form = self._stream(number), matrix_shape(shape)
        (length,) = struct.unpack_from("<I", data)
        codes = plane(data[4 : 4 + length], (sum(form), 1), 0, Models(b"", b""))[:, 0]
        expected = self.scales.get(self.states.get(number), ([0] * form[0], [0] * form[1]))
        codes = (codes + np.array([*expected[0], *expected[1]], np.int16)).astype(np.int16).tolist()
        rows, columns = (
            np.array([scale_value(code) for code in part]) for part in (codes[: form[0]], codes[form[0] :])
        )
        product, data = rows[:, None] * columns[None, :], data[4 + length :]
        if self.index["codes"][number][0] == "state_mean":
            levels = plane(data[4:], form, 1, self.models)
            return rounded(levels * (np.sqrt(product) * struct.unpack_from("<f", data)[0]), dtype).tobytes()
        filled = rounded(np.where(product > 0, np.maximum(product, SMALLEST[dtype]), 0.0), dtype)
        if self.index["codes"][number][0] == "state_variance":
            fill, levels = widened(filled, dtype), plane(data, form, 2, self.models)
            times = np.vectorize(lambda level: scale_value(4 * int(level)), otypes=[float])(levels)
            filled = rounded(np.where(fill > 0, np.maximum(fill * times, SMALLEST[dtype]), 0.0), dtype)
        return filled.tobytes()

    def _own_guide(self, weight: int) -> np.ndarray | None:
        return self.own.get(self.layout["tensors"][weight][0], "levels")

    def _second(self, weight: int, first: int, second: int) -> np.ndarray:
        _, dtype, shape, nbytes = self.layout["tensors"][second]
        form = matrix_shape(shape)
        if self.index["codes"][second][0] == "exact":
            itemsize = np.dtype(DTYPES[dtype]).itemsize
            data = exact(self._stream(second), nbytes // itemsize, itemsize, None)
            return np.frombuffer(data, DTYPES[dtype]).reshape(form)
        filled = self._filled(weight, second)
        if self.index["codes"][second][0] == "scaled":
            fill = widened(rounded(filled, dtype), dtype)
            levels = plane(self._stream(second), form, 2, self.models)
            times = np.vectorize(lambda level: scale_value(4 * int(level)), otypes=[float])(levels)
            filled = np.where(fill > 0, np.maximum(fill * times, SMALLEST[dtype]), 0.0)
        if self.index["codes"][second][0] == "kmeans":
            guide, _ = self._first_codebook(weight, first)
            guide, scales = np.clip(guide, -127, 127).astype(np.int8), Second(self.scales[weight])
            levels, values = self._codebook(self._stream(second), form, 2, guide, None, scales.for_second)
            filled = np.where(levels != 0, np.maximum(values, SMALLEST_NORMAL[dtype]), filled)
        return rounded(filled, dtype)

    def _filled(self, weight: int, second: int) -> np.ndarray:
        product = self._product(weight)
        floor = (SMALLEST_NORMAL if self.reach is None else SMALLEST)[self.layout["tensors"][second][1]]
        return np.where(product > 0, np.maximum(product, floor), 0.0)

    def _first_codebook(self, weight: int, first: int):
        form, scales = matrix_shape(self.layout["tensors"][first][2]), Second(self.scales[weight])
        return self._codebook(self._stream(first), form, 1, self._own_guide(weight), None, scales.for_first)

    def _product(self, weight: int) -> np.ndarray:
        rows, columns = (np.array([scale_value(code) for code in codes]) for codes in self.scales[weight])
        return rows[:, None] * columns[None, :]

    def _momentum(self, weight: int, momentum: int) -> np.ndarray:
        _, dtype, shape, _ = self.layout["tensors"][momentum]
        if self.index["codes"][momentum][0] == "framed":
            used = [[int(code) for code in codes if code != -32768] for codes in self.scales[weight]]
            unit = math.sqrt(math.sqrt(scale_value(sum(sum(codes) // max(len(codes), 1) for codes in used))))
            return self._framed_moment(weight, momentum, self.index["framed_momentum_step"] * unit)
        levels = plane(self._stream(momentum), matrix_shape(shape), 1, self.models, self._own_guide(weight))
        return rounded(levels * (np.sqrt(self._product(weight)) * self.index["momentum_step"]), dtype)

    def _framed_moment(self, weight: int, moment: int, step: float) -> np.ndarray:
        _, dtype, shape, _ = self.layout["tensors"][moment]
        form, data = matrix_shape(shape), self._stream(moment)
        frame = Frame(self.layout["tensors"][weight][0], form, self.own)
        levels = plane(data[3:], form, 1, self.models, self._own_guide(weight))
        residual = frame.residual(frame.coefficients(fractions(data, levels)))
        rows, columns = self._roots(weight)
        return rounded(((residual * step) * rows) * columns, dtype)

    def _first(self, weight: int, first: int, second: int) -> np.ndarray:
        _, dtype, shape, _ = self.layout["tensors"][first]
        form, data = matrix_shape(shape), self._stream(first)
        if self.index["codes"][first][0] == "kmeans":
            return rounded(self._first_codebook(weight, first)[1], dtype)
        if self.index["codes"][first][0] == "framed":
            return self._framed_moment(weight, first, self.index["framed_moment_step"])
        if self.index["codes"][first][0] == "trend":
            rows, columns = self._roots(weight)
            times = scale_value(*struct.unpack("<h", data))
            trend = self.own.get(self.layout["tensors"][weight][0], "trend").astype(float)
            return rounded(np.where(self._product(weight) > 0, 0.0 - times * ((trend * rows) * columns), 0.0), dtype)
        levels = plane(data, form, 1, self.models, self._own_guide(weight)).astype(float)
        stored = self.layout["tensors"][second][1]
        restored = widened(rounded(self._filled(weight, second), stored), stored)
        return rounded(levels * (np.sqrt(restored) * self.index["moment_step"]), dtype)

    def pieces(self) -> list[bytes]:
        """What lies before, between and behind holes, of all files in order."""
        lengths = []
        for _, size, holes, *_ in self.layout["files"]:
            ends = [0, *(hole[1] + hole[2] for hole in holes)]
            starts = [*(hole[1] for hole in holes), size]
            lengths += [start - end for start, end in zip(starts, ends, strict=True)]
        numbers = [0] * len(lengths)
        if len(self.skeleton) < sum(lengths):
            numbers = struct.unpack(f"<{len(lengths)}I", self.skeleton[-4 * len(lengths) :])
        found, new, position = [], [], 0
        for length, number in zip(lengths, numbers, strict=True):
            if not number:
                new.append(self.skeleton[position : position + length])
                position += length
            found.append(new[number - 1])
        return found

    def files(self) -> dict[str, bytes]:
        """The restored files."""
        found, pieces = {}, iter(self.pieces())
        for name, size, holes, *further in self.layout["files"]:
            file, start, end = bytearray(size), 0, 0
            crcs: dict[int, bytes] = {}
            continuing, joining = [*further, [], []][:2]
            marks = []
            for number, (tensor, offset, nbytes, *places) in enumerate([*holes, (None, size, 0)]):
                file[end:offset] = next(pieces)
                end = offset + nbytes
                if tensor is not None:
                    start = start if tensor in continuing or number in joining else offset
                    part = places.pop(0) if places and isinstance(places[0], list) else [0]
                    made, place, *repeated = places.pop() if places and isinstance(places[-1], list) else [None, 0]
                    run, pitch = part[1:] if len(part) > 1 else (nbytes, 0)
                    runs = range(part[0], part[0] + nbytes // run * pitch, pitch) if pitch else part
                    payload = self.payload(tensor)
                    file[offset:end] = b"".join(payload[begin : begin + run] for begin in runs)
                    crcs |= dict.fromkeys(places, struct.pack("<I", zlib.crc32(file[start:end])))
                    if made is not None:
                        before, after = self.layout["fingerprints"][made]
                        marks.append((place, repeated, [*before, zlib.crc32(file[start:end]), *after]))
            for place, crc in crcs.items():
                file[place : place + 4] = crc
            for place, repeated, records in marks:
                seed = 0
                for crc in records:
                    seed ^= (crc + 0x9E3779B9 + (seed << 6) % 2**64 + (seed >> 2)) % 2**64
                file[place : place + 20] = f"{seed:020}".encode()
                for offset in repeated:
                    file[offset : offset + 4] = struct.pack("<I", zlib.crc32(file[place - 20 : place + 20]))
            found[name] = bytes(file)
        return found


def layer_before(path) -> list[str] | None:
    """The path whose last part has its first all-digit component, which is not its last one, less one."""
    parts = path[-1].split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdecimal():
            before = [*parts[:position], str(int(part) - 1), *parts[position + 1 :]]
            return [*path[:-1], ".".join(before)] if int(part) else None
    return None

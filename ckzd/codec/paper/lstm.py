"""The exact integer LSTM: reads a context as a sequence of classes, yields a frequency for each symbol.

Weights are int8 (1/32), the hidden state is 7-bit, the cell 12-bit fixed point; activations are table look-ups and
products are float64 matmuls of integers far below 2**53, so that every BLAS, thread count and order of summation gives
the same bits. The network is run once for each distinct context, not once a symbol: contexts form a tree (one level a
class), and a prefix is evaluated once for all that share it.

# T = tokens, E = embedding, H = hidden, A = alphabet, B = contexts of one tree level
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ckzd.codec import zstd
from ckzd.codec.entropy.context import DENSITIES, FIELDS, PASSES
from ckzd.codec.entropy.range_coder import Rows
from ckzd.codec.entropy.tables import EXP2_NEGATIVE, SIGMOID
from ckzd.codec.kernels.plain import ALPHABET
from ckzd.codec.records.reconstruction import Reconstruction

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]

EMBEDDING, HIDDEN = 12, 24
WEIGHT_BITS, HIDDEN_BITS, TABLE_STEP_BITS = 5, 7, 5
GATE_BITS = WEIGHT_BITS + HIDDEN_BITS

KINDS = 3  # of planes: those of what is exact are of tables alone
_SIZES = (KINDS * PASSES, DENSITIES, *(size for _, size in FIELDS))
_FIRST_TOKEN = tuple(int(first) for first in np.cumsum((0, *_SIZES)))
TOKENS = _FIRST_TOKEN[-1]

_RIGHT = np.array(SIGMOID, np.int32)
_SIGMOID = np.concatenate([32768 - _RIGHT[:0:-1], _RIGHT])  # index 256 is 0
_EXP2 = np.array(EXP2_NEGATIVE, np.int64)


@dataclass(frozen=True, slots=True)
class LstmWeights:
    """All parameters, int8 in units of 2**-5."""

    embedding: Int8  # (T, E)
    gates: Int8  # (E, 4H): input, forget, output, cell
    hidden: Int8  # (H, 4H)
    bias: Int8  # (4H,)
    output: Int8  # (H, A)
    output_bias: Int8  # (A,)

    def to_bytes(self) -> bytes:
        """All parameters in field order."""
        return b"".join(getattr(self, field.name).tobytes() for field in fields(self))

    @staticmethod
    def from_bytes(data: bytes) -> "LstmWeights":
        """The inverse of `to_bytes`; ValueError if the length is wrong."""
        if len(data) != LSTM_BYTES:
            raise ValueError(f"expected {LSTM_BYTES} bytes of LSTM weights, got {len(data)}")
        arrays, start = {}, 0
        for name, shape in SHAPES.items():
            stop = start + int(np.prod(shape))
            arrays[name] = np.frombuffer(data[start:stop], np.int8).reshape(shape)
            start = stop
        return LstmWeights(**arrays)


def shapes_of(embedding: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of a network of that size, by name."""
    return {
        "embedding": (TOKENS, embedding),
        "gates": (embedding, 4 * hidden),
        "hidden": (hidden, 4 * hidden),
        "bias": (4 * hidden,),
        "output": (hidden, ALPHABET),
        "output_bias": (ALPHABET,),
    }


SHAPES = shapes_of(EMBEDDING, HIDDEN)
LSTM_BYTES = sum(int(np.prod(shape)) for shape in SHAPES.values())


def tokens_of(field: int) -> range:
    """Token numbers of the sequence's `field`: 0 is (kind, pass), 1 is density, then `context.FIELDS`."""
    return range(_FIRST_TOKEN[field], _FIRST_TOKEN[field + 1])


class LstmModel:
    """Frequencies of all contexts of a (kind, pass, density), computed once each and kept."""

    def __init__(self, weights: LstmWeights) -> None:
        embedded = weights.embedding.astype(np.float64) @ weights.gates.astype(np.float64)
        bias = weights.bias.astype(np.int32) << (GATE_BITS - WEIGHT_BITS)
        self._input = (embedded.astype(np.int32) << (GATE_BITS - 2 * WEIGHT_BITS)) + bias  # (T, 4H), 2**-12
        self._hidden = weights.hidden.astype(np.float64)
        self._output = weights.output.astype(np.float64)
        self._output_bias = weights.output_bias.astype(np.int32) << (GATE_BITS - WEIGHT_BITS)
        self._rows: dict[tuple[int, int, int], Rows] = {}

    def rows(self, kind: int, number: int, density: int) -> Rows:
        """Frequencies (GRID, A) of every context of plane kind `kind` in pass `number` at `density`."""
        key = (kind, number, density)
        if key not in self._rows:
            self._rows[key] = self._evaluate((kind * PASSES + number, density))
        return self._rows[key]

    def _evaluate(self, prefix: tuple[int, int]) -> Rows:
        hidden = cell = np.zeros((1, len(self._hidden)), np.int32)
        for field in range(len(_SIZES)):
            tokens = np.array(tokens_of(field))
            if field < len(prefix):
                tokens = tokens[prefix[field] : prefix[field] + 1]
            gates = (hidden.astype(np.float64) @ self._hidden).astype(np.int32)
            gates = (gates[:, None, :] + self._input[tokens]).reshape(-1, gates.shape[1])
            hidden, cell = _step(gates, np.repeat(cell, tokens.size, axis=0))
        logits = (hidden.astype(np.float64) @ self._output).astype(np.int32) + self._output_bias
        return _frequencies(logits)


def _step(gates: Int32, cell: Int32) -> tuple[Int32, Int32]:
    """One LSTM step: pre-activations (B, 4H) in 2**-12 and cell (B, H) in 2**-12 -> hidden (2**-7), cell (2**-12)."""
    enter, keep, show, candidate = np.split(gates, 4, axis=1)
    enter, keep, show, candidate = _sigmoid(enter), _sigmoid(keep), _sigmoid(show), _tanh(candidate)
    cell = ((keep * cell) >> 15) + ((enter * candidate) >> 18)
    hidden = np.minimum((show * _tanh(cell)) >> 23, 127)
    return hidden, cell


def _sigmoid(values: Int32) -> Int32:
    """2**-12 -> 2**-15."""
    shift = GATE_BITS - TABLE_STEP_BITS
    index = (values + (1 << (shift - 1))) >> shift
    found: Int32 = _SIGMOID[np.clip(index, -256, 256) + 256]
    return found


def _tanh(values: Int32) -> Int32:
    """2**-12 -> 2**-15, as 2 sigmoid(2x) - 1."""
    found: Int32 = 2 * _sigmoid(2 * values) - 32768
    return found


def _frequencies(logits: Int32) -> Rows:
    """Base-2 logits (B, A) in 2**-12 -> frequencies: 2**16 for the likeliest, at least 1."""
    below = logits.max(axis=1, keepdims=True) - logits
    scaled = _EXP2[(below >> 6) & 63] >> np.minimum(below >> GATE_BITS, 30)
    return np.asarray(scaled + 1, np.float64)


# Stored as differences to the reference's


def encode_lstm(weights: bytes, reference: Reconstruction | None) -> bytes:
    """Zstd of the int8 differences to the reference's LSTM."""
    difference = np.frombuffer(weights, np.uint8) - _lstm_before(reference)
    return zstd.compress(difference.tobytes())


def decode_lstm(data: bytes, reference: Reconstruction | None) -> bytes:
    """The inverse of `encode_lstm`; nothing if there is nothing."""
    if not data:
        return b""
    plain = zstd.decompress_exactly(data, LSTM_BYTES)
    return (np.frombuffer(plain, np.uint8) + _lstm_before(reference)).tobytes()


def _lstm_before(reference: Reconstruction | None) -> npt.NDArray[np.uint8]:
    before = reference.blob("lstm") if reference is not None else b""
    return np.frombuffer(before, np.uint8) if len(before) == LSTM_BYTES else np.zeros(LSTM_BYTES, np.uint8)

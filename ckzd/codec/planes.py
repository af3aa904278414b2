"""A plane of levels <-> bytes: escapes, the choice of the cheapest coder, four passes over the lattice.

Layout of a coded plane (all little-endian):
  u8  coder           0 empty, 1 raw, 2 order-0, 3 tables, 4 lstm
  empty: nothing more, every level is 0; raw: i16 levels, row by row; else:
  u8  codes           0 or 18: how many symbol codes follow
  u32 total           sum of the magnitudes (each cut off at 15): sets the density class
  u32 escapes         bytes of the escape block
  u8[codes]           order-0: the frequencies; tables, lstm: this plane's factors on the shared model (128: 1)
  escape block        zstd of the i16 levels beyond -8..8, in coding order; absent if there are none
  words               range-coded symbols, to the end
"""

import struct
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import zstandard

from ckzd.codec import context
from ckzd.codec.context import GRID, Guide
from ckzd.codec.entropy import SymbolDecoder, SymbolEncoder
from ckzd.codec.lstm import ALPHABET
from ckzd.codec.models import (
    BiasedModel,
    Codes,
    Histograms,
    Model,
    Models,
    UniformModel,
    cost_bits,
    fit_bias,
    frequency_codes,
)

Plane = npt.NDArray[np.int16]  # (R, C) levels

ESCAPE = ALPHABET - 1
MAX_LEVEL = (ALPHABET - 2) // 2  # 8
_HEADER = struct.Struct("<BBII")


class Coder(IntEnum):
    """How the symbols of a plane are coded."""

    EMPTY = 0
    RAW = 1
    ORDER0 = 2
    TABLES = 3
    LSTM = 4


def to_symbols(levels: Plane) -> npt.NDArray[np.int32]:
    """Zigzag: 0, 1, -1, 2, -2, ... 8, -8 -> 0..16; everything beyond is the escape."""
    wide = levels.astype(np.int32)
    return np.minimum(np.where(wide > 0, 2 * wide - 1, -2 * wide), ESCAPE)


def _to_levels(symbols: npt.NDArray[np.int32], escapes: Plane) -> Plane:
    levels = np.where(symbols & 1, (symbols + 1) >> 1, -(symbols >> 1)).astype(np.int16)
    levels[symbols == ESCAPE] = escapes
    return levels


def histograms_of(levels: Plane, kind: int, guide: Guide) -> Histograms:
    """How often each symbol follows each context of this plane."""
    magnitude, symbols = context.magnitudes(levels), to_symbols(levels)
    total = int(magnitude.sum(dtype=np.int64))
    density = context.density_class(total, levels.size)
    known, found = np.zeros_like(magnitude), {}
    for number, mask, ids in context.passes(guide, known, total):
        flat = ids.astype(np.int64) * ALPHABET + symbols[mask]
        found[kind, number, density] = np.bincount(flat, minlength=GRID * ALPHABET).reshape(GRID, ALPHABET)
        known[mask] = magnitude[mask]
    return found


def _choose(histograms: Histograms, models: Models) -> tuple[Coder, Codes, float]:
    """The cheapest coder, its codes (none: unbiased), and its bits without escapes."""
    marginal = np.sum([h.sum(0) for h in histograms.values()], 0, dtype=np.float64)
    none, order0 = np.empty(0, np.uint8), frequency_codes(marginal)
    choices = [(Coder.ORDER0, order0, cost_bits(histograms, UniformModel(order0)) + 8 * ALPHABET)]
    shared = [(Coder.TABLES, models.tables)] + ([(Coder.LSTM, models.lstm)] if models.lstm is not None else [])
    for coder, model in shared:
        bias = fit_bias(histograms, model)
        choices.append((coder, none, cost_bits(histograms, model)))
        choices.append((coder, bias, cost_bits(histograms, BiasedModel(model, bias)) + 8 * ALPHABET))
    return min(choices, key=lambda choice: choice[2])


def _model_of(coder: Coder, codes: Codes, models: Models) -> Model:
    """The frequencies that a plane with this header is coded with, for both directions."""
    if coder is Coder.ORDER0:
        return UniformModel(codes)
    shared = models.tables if coder is Coder.TABLES else models.lstm
    if shared is None:
        raise ValueError("a plane is coded with an LSTM that the archive does not carry")
    return BiasedModel(shared, codes) if codes.size else shared


def encode_plane(levels: Plane, kind: int, guide: Guide, models: Models) -> tuple[bytes, Coder]:
    """Code a plane (R, C) with whichever coder is cheapest; returns the bytes and which coder it was."""
    if not levels.any():
        return bytes([Coder.EMPTY]), Coder.EMPTY
    coder, codes, bits = _choose(histograms_of(levels, kind, guide), models)
    escapes = _pack_escapes(levels)
    if bits + 8 * len(escapes) >= 16 * levels.size:
        return bytes([Coder.RAW]) + levels.astype("<i2").tobytes(), Coder.RAW
    total = int(context.magnitudes(levels).sum(dtype=np.int64))
    header = _HEADER.pack(coder, codes.size, total, len(escapes)) + codes.tobytes() + escapes
    return header + _encode_symbols(levels, kind, guide, total, _model_of(coder, codes, models)), coder


def decode_plane(data: bytes, shape: tuple[int, int], kind: int, guide: Guide, models: Models) -> Plane:
    """The inverse of `encode_plane`; ValueError if the bytes cannot be one."""
    if data[0] == Coder.EMPTY:
        return np.zeros(shape, np.int16)
    if data[0] == Coder.RAW:
        return np.frombuffer(data, "<i2", offset=1).reshape(shape)
    name, code_count, total, escape_bytes = _HEADER.unpack_from(data)
    body = _HEADER.size + code_count
    codes = np.frombuffer(data, np.uint8, code_count, _HEADER.size)
    if code_count not in (0, ALPHABET):
        raise ValueError(f"expected 0 or {ALPHABET} symbol codes, got {code_count}")
    escapes = _unpack_escapes(data[body : body + escape_bytes], shape)
    model = _model_of(Coder(name), codes, models)
    return _decode_symbols(data[body + escape_bytes :], escapes, shape, kind, guide, total, model)


def _pack_escapes(levels: Plane) -> bytes:
    """Zstd of the levels beyond -8..8 in coding order, or nothing."""
    pass_of = context.lattice(levels.shape)
    beyond = np.abs(levels.astype(np.int32)) > MAX_LEVEL
    if not beyond.any():
        return b""
    ordered = np.concatenate([levels[(pass_of == number) & beyond] for number in range(context.PASSES)])
    return zstandard.ZstdCompressor(level=19).compress(ordered.astype("<i2").tobytes())


def _unpack_escapes(data: bytes, shape: tuple[int, int]) -> Plane:
    limit = 2 * shape[0] * shape[1]
    plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=limit) if data else b""
    return np.frombuffer(plain, "<i2")


def _encode_symbols(levels: Plane, kind: int, guide: Guide, total: int, model: Model) -> bytes:
    magnitude, symbols = context.magnitudes(levels), to_symbols(levels)
    density = context.density_class(total, levels.size)
    known, coder = np.zeros_like(magnitude), SymbolEncoder()
    for number, mask, ids in context.passes(guide, known, total):
        coder.encode(symbols[mask], ids, model.rows(kind, number, density))
        known[mask] = magnitude[mask]
    return coder.finish()


def _decode_symbols(
    words: bytes, escapes: Plane, shape: tuple[int, int], kind: int, guide: Guide, total: int, model: Model
) -> Plane:
    levels, known = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
    density = context.density_class(total, levels.size)
    coder, used = SymbolDecoder(words), 0
    for number, mask, ids in context.passes(guide, known, total):
        symbols = coder.decode(ids, model.rows(kind, number, density))
        count = int(np.count_nonzero(symbols == ESCAPE))
        if used + count > escapes.size:
            raise ValueError(f"a plane has {escapes.size} escapes but its symbols ask for more")
        levels[mask] = _to_levels(symbols, escapes[used : used + count])
        used += count
        known[mask] = context.magnitudes(levels[mask])
    if used != escapes.size:
        raise ValueError(f"a plane has {escapes.size} escapes but its symbols ask for {used}")
    return levels

"""Lossless methods: general compressors, zipnn, byte planes of integer deltas; and what each setting of them gives.

usage: lossless.py PREVIOUS.pt CURRENT.pt
A JSON line a candidate: ratio of CURRENT, given PREVIOUS, and MB of the original a CPU second each way. Each is
decoded and compared. What is in the file beside float32 tensors is for general compressors only: for the others it
counts as it is.
"""

# N = float32 numbers in a checkpoint

import argparse
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from clock import Clock
from machine import machine

from ckzd.checkpoint import STORED_AS
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.lossless.exact import decode_exact, encode_exact
from ckzd.codec.records.layout import plane_shape
from ckzd.formats import read_checkpoint

Words = npt.NDArray[np.uint32]
PLANES_LEVEL = 19
LEVELS = (1, 3, 9, 19)
CPU_TICK = 0.01  # the least that os.times tells apart
WAYS = {"encode": "cpu_seconds", "decode": "decode_cpu_seconds"}  # on one thread: what an idle core takes


@dataclass(frozen=True)
class FileCoder:
    """A general compressor on each file by itself."""

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]

    def add(self, checkpoint: Path, _previous: Path | None) -> dict[str, Any]:
        """Compressed, decompressed and compared."""
        return _timed(
            checkpoint.read_bytes(), lambda data: [self.compress(data)], lambda coded: self.decompress(*coded)
        )


@dataclass(frozen=True)
class ZipnnCoder:
    """zipnn on all float32 tensors of a checkpoint as one array; what else is in the file counts as it is."""

    def add(self, checkpoint: Path, _previous: Path | None) -> dict[str, Any]:
        """On one thread, as the others."""
        from zipnn import ZipNN  # an extra: only the benchmarks need it

        coder = ZipNN(input_format="byte", bytearray_dtype="float32", threads=1)
        row = _timed(
            floats_of(checkpoint).tobytes(),
            lambda data: [coder.compress(bytearray(data))],  # a copy: it works in place
            lambda coded: bytes(coder.decompress(*coded)),
        )
        return _with_rest(row, checkpoint)


@dataclass(frozen=True)
class DeltaPlanes:
    """The strongest simple one: floats less the previous ones' as integers, byte by byte, zstd."""

    level: int = PLANES_LEVEL

    def add(self, checkpoint: Path, previous: Path | None) -> dict[str, Any]:
        """What is no float32 tensor counts as it is. A base, without `previous`, is planes of the floats themselves."""
        return dict(_delta_planes(checkpoint, previous, self.level))


@cache  # every setting of the baseline has the same base
class ExactStreams:
    """ckzd's exact streams of every tensor, without container or proof: weights against the reference's."""

    def add(self, checkpoint: Path, previous: Path | None) -> dict[str, Any]:
        """As `methods.Chain`."""
        now, before = read_checkpoint(checkpoint), read_checkpoint(previous) if previous else None
        known = {tensor.path: number for number, tensor in enumerate(before.tensors)} if before else {}
        kept = set(Inputs(now, None).reference_tensors)
        payloads = [bytes(now.payload(number)) for number in range(len(now.tensors))]
        references = [
            before.payload(known[tensor.path]) if before and number in kept and tensor.path in known else None
            for number, tensor in enumerate(now.tensors)
        ]
        itemsizes = {dtype: stored.itemsize for dtype, stored in STORED_AS.items()}
        forms = [(itemsizes.get(tensor.dtype, 1), plane_shape(tensor.shape)[1]) for tensor in now.tensors]

        def compress(_: bytes) -> list[bytes]:
            each = zip(payloads, references, forms, strict=True)
            return [encode_exact(data, width, old, columns) for data, old, (width, columns) in each]

        def decompress(coded: list[bytes]) -> bytes:
            each = zip(coded, now.tensors, references, forms, strict=True)
            return b"".join(decode_exact(data, tensor.nbytes, width, old) for data, tensor, old, (width, _) in each)

        return _with_rest(_timed(b"".join(payloads), compress, decompress), checkpoint)


@dataclass(frozen=True)
class PcodecStreams:
    """pcodec of every float32 tensor: in its best mode for moments, as integers less the previous ones' for weights."""

    def add(self, checkpoint: Path, previous: Path | None) -> dict[str, Any]:
        """As `ExactStreams`; what is no float32 tensor counts as it is."""
        from pcodec import ChunkConfig, standalone  # an extra: only the benchmarks need it

        now, before = read_checkpoint(checkpoint), read_checkpoint(previous) if previous else None
        known = {tensor.path: number for number, tensor in enumerate(before.tensors)} if before else {}
        kept, how = set(Inputs(now, None).reference_tensors), ChunkConfig(compression_level=8)
        numbers = [number for number, tensor in enumerate(now.tensors) if tensor.dtype == "float32"]
        payloads = [np.frombuffer(bytes(now.payload(number)), np.uint32) for number in numbers]
        references = [
            ordered(np.frombuffer(before.payload(known[now.tensors[number].path]), np.uint32))
            if before and number in kept and now.tensors[number].path in known
            else None
            for number in numbers
        ]

        def compress(_: bytes) -> list[bytes]:
            return [
                standalone.simple_compress(
                    words_N.view(np.float32) if old_N is None else (ordered(words_N) - old_N).view(np.int32), how
                )
                for words_N, old_N in zip(payloads, references, strict=True)
            ]

        def decompress(coded: list[bytes]) -> bytes:
            found = [standalone.simple_decompress(data) for data in coded]
            return b"".join(
                (values.view(np.uint32) if old_N is None else unordered(values.view(np.uint32) + old_N)).tobytes()
                for values, old_N in zip(found, references, strict=True)
            )

        data = b"".join(words_N.tobytes() for words_N in payloads)
        return _with_rest(_timed(data, compress, decompress), checkpoint)


def ordered(words_N: Words) -> Words:
    """Floats by their bits as integers in the order of the floats."""
    return np.where(words_N >> 31, ~words_N, words_N | np.uint32(1 << 31))


def unordered(words_N: Words) -> Words:
    """The inverse of `ordered`."""
    return np.where(words_N >> 31, words_N & np.uint32((1 << 31) - 1), ~words_N)


def _delta_planes(checkpoint: Path, previous: Path | None, level: int) -> dict[str, Any]:
    floats_N = floats_of(checkpoint)
    before_N = floats_of(previous) if previous is not None else np.zeros_like(floats_N)
    coder, decoder = zstandard.ZstdCompressor(level), zstandard.ZstdDecompressor()

    def compress(data: bytes) -> list[bytes]:
        return [coder.compress(plane) for plane in to_planes(np.frombuffer(data, np.uint32), before_N)]

    def decompress(coded: list[bytes]) -> bytes:
        return from_planes([decoder.decompress(plane) for plane in coded], before_N).tobytes()

    return _with_rest(_timed(floats_N.tobytes(), compress, decompress), checkpoint)


def to_planes(words_N: Words, before_N: Words) -> list[bytes]:
    """Four planes of the differences' bytes, lowest first; small differences of either sign are small numbers."""
    delta_N = (words_N - before_N).view(np.int32)
    folded_N4 = ((delta_N << 1) ^ (delta_N >> 31)).view(np.uint8).reshape(-1, 4)
    return [folded_N4[:, place].tobytes() for place in range(4)]


def from_planes(planes: list[bytes], before_N: Words) -> Words:
    """The inverse of `to_planes`."""
    folded_N = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1).view(np.uint32)[:, 0]
    return ((folded_N >> 1) ^ (np.uint32(0) - (folded_N & 1))) + before_N


def floats_of(checkpoint: Path) -> Words:
    """All float32 numbers of a checkpoint by their bits, uint32 (N,)."""
    found = []

    def walk(node: Any) -> None:
        if isinstance(node, torch.Tensor) and node.dtype == torch.float32:
            found.append(node.numpy().reshape(-1).view(np.uint32))
        elif isinstance(node, dict):
            for value in node.values():
                walk(value)

    walk(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return np.concatenate(found)


def _timed(
    data: bytes, compress: Callable[[bytes], list[bytes]], decompress: Callable[[list[bytes]], bytes]
) -> dict[str, Any]:
    """Both directions, compared."""
    encoding = Clock()
    coded = compress(data)
    seconds = encoding.seconds()
    decoding = Clock()
    decoded = decompress(coded)
    seconds |= {f"decode_{name}": value for name, value in decoding.seconds().items()}
    if decoded != data:
        raise SystemExit("a lossless method did not give back what it got")
    return {"bytes": sum(map(len, coded)), "of": len(data), **seconds}


def _with_rest(row: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """With what was not handed to the coder: pickle, headers, padding."""
    return row | {"bytes": row["bytes"] + checkpoint.stat().st_size - row["of"]}


def zstd(level: int) -> FileCoder:
    """zstd at this level."""
    return FileCoder(zstandard.ZstdCompressor(level).compress, zstandard.ZstdDecompressor().decompress)


def xz() -> FileCoder:
    """xz -9."""
    return FileCoder(lambda data: lzma.compress(data, preset=9), lzma.decompress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("previous", type=Path)
    parser.add_argument("current", type=Path)
    options = parser.parse_args()
    size = options.current.stat().st_size
    candidates = {"delta by ckzd's exact streams": ExactStreams()}
    candidates |= {f"zstd -{level}": zstd(level) for level in LEVELS}
    candidates |= {"delta by pcodec -8": PcodecStreams()}
    candidates |= {"xz -9": xz(), "zipnn": ZipnnCoder()}
    candidates |= {f"planes zstd -{level}": DeltaPlanes(level) for level in LEVELS}
    candidates |= {f"delta planes zstd -{level}": DeltaPlanes(level) for level in LEVELS}
    print(json.dumps({**machine(), "original_bytes": size}))
    for name, coder in candidates.items():
        row = coder.add(options.current, options.previous if name.startswith("delta") else None)
        speeds = {f"{way}_mb_s": round(size / 1e6 / max(row[seconds], CPU_TICK), 1) for way, seconds in WAYS.items()}
        print(json.dumps({"candidate": name, "ratio": round(size / row["bytes"], 4), **speeds}), flush=True)


if __name__ == "__main__":
    main()

"""Zstandard with its limits: a block is decompressed only if the size that it claims is one that can be right."""

from collections.abc import Sequence

import zstandard

SMALL, FAST = 19, 3  # levels for side information: of kilobytes, of megabytes
# What 64 ranks list of 21,000 parts (3 MB) takes 1.0 s as small and 0.3 s as large, at a base for a fifth more bytes.
_LARGE, _SMALL_BYTES = 16, 2 << 20
_MIN_WINDOW_LOG, _MAX_WINDOW_LOG = 20, 27


def compress(data: bytes, level: int = SMALL) -> bytes:
    """One Zstandard frame that states its size."""
    return zstandard.ZstdCompressor(level=level).compress(data)


def compress_parts(parts: Sequence[bytes], level: int, *, alone: int) -> bytes:
    """One Zstandard frame of all parts; one of at least `alone` bytes shares its Huffman tables with no other."""
    coder = zstandard.ZstdCompressor(level=level).compressobj(size=sum(map(len, parts)))
    found = []
    for part in parts:
        if len(part) >= alone:
            found.append(coder.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        found.append(coder.compress(part))
        if len(part) >= alone:
            found.append(coder.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    return b"".join([*found, coder.flush()])


def decompress(data: bytes, at_most: int, reference: bytes = b"") -> bytes:
    """The inverse of `compress` and `compress_against`; ValueError if the block is malformed, larger, or not alone."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= at_most:
            raise ValueError(f"a block that claims {size} bytes, at most {at_most} are possible")
        decompressor = zstandard.ZstdDecompressor(dict_data=_dictionary(reference))
        return decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def decompress_exactly(data: bytes, nbytes: int) -> bytes:
    """What a block holds whose size is known; ValueError unless it is just so large."""
    plain = decompress(data, nbytes)
    if len(plain) != nbytes:
        raise ValueError(f"expected a block of {nbytes} bytes, got {len(plain)}")
    return plain


def compress_against(data: bytes, reference: bytes) -> bytes:
    """One Zstandard frame with `reference` as its raw dictionary: what did not change costs next to nothing."""
    together = len(data) + len(reference)
    window = max(_MIN_WINDOW_LOG, min(_MAX_WINDOW_LOG, together.bit_length()))
    level = SMALL if together <= _SMALL_BYTES else _LARGE
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, window_log=window, enable_ldm=True, write_content_size=1
    )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=_dictionary(reference)).compress(data)


def _dictionary(reference: bytes) -> zstandard.ZstdCompressionDict | None:
    if not reference:
        return None
    return zstandard.ZstdCompressionDict(reference, dict_type=zstandard.DICT_TYPE_RAWCONTENT)

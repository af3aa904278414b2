"""Streams that pass the container's hashes and lie all the same: malformed or another tensor, never a crash."""

import io
import tracemalloc

import numpy as np
import pytest
from codec.chains import Archive, Zoo, compressed_run, decode, lstm_everywhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckzd.codec import zstd
from ckzd.codec.decode import MALFORMED, Decoder
from ckzd.codec.paper.lstm import LSTM_BYTES
from ckzd.codec.records.index import Method
from ckzd.codec.records.reconstruction import ReconstructionWriter

PRESETS = ("resume", "paper", "lossless")
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """Base and delta of each preset, with an LSTM in the delta."""
    run, zoo = tmp_path_factory.mktemp("run"), Zoo()
    paths = []
    for _ in range(2):
        zoo.advance()
        paths.append(zoo.save(run / f"step_{zoo.step}.pt"))
    with lstm_everywhere():
        chains = {preset: compressed_run(paths, preset) for preset in PRESETS}
    assert chains["resume"][1].methods(chains["resume"][0])["model.low"] is Method.FACTORED
    for preset in ("resume", "paper"):
        delta = chains[preset][1]
        assert len(zstd.decompress(delta.entries["lstm"], LSTM_BYTES)) == LSTM_BYTES
        assert delta.encoded.coders["lstm"] > 10
    return chains


def damaged(data: bytes, draw) -> bytes:
    """A few bytes changed, or a piece cut out."""
    if not data:
        return b"\0"
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        near_start = st.integers(0, min(24, len(found) - 1))
        found[draw(near_start | st.integers(0, len(found) - 1))] = draw(st.integers(0, 255))
    if draw(st.integers(0, 4)) == 0:
        start = draw(st.integers(0, len(found)))
        del found[start : start + draw(st.integers(1, 40))]
    return bytes(found)


def everything(archive: Archive, reference: Archive | None) -> None:
    """Decode all that there is, kept tensors and payloads."""
    before = reference.reconstruction if reference is not None else None
    decoder = Decoder.from_reference(archive.entry, lambda ref: archive.streams[ref], before)
    writer = ReconstructionWriter(io.BytesIO())
    decoder.decode_reference_tensors(writer)
    for number, tensor in enumerate(decoder.index.layout.tensors):
        assert len(decoder.payload(number, writer)) == tensor.nbytes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_streams_and_entries_are_malformed_or_decode_to_something(chains, data):
    decode_damaged(chains, data)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_campaign_of_damage(chains, data):
    decode_damaged(chains, data)


def decode_damaged(chains, data):
    preset = data.draw(st.sampled_from(PRESETS))
    reference, whole = chains[preset]
    changed = Archive(dict(whole.entries), dict(whole.streams), whole.encoded, whole.reconstruction)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from([name for name in whole.entries if name != "skeleton"]))
        changed.entries[name] = damaged(whole.entries[name], data.draw)
    else:
        ref = data.draw(st.sampled_from(list(whole.streams)))
        changed.streams[ref] = damaged(whole.streams[ref], data.draw)
    tracemalloc.start()
    try:
        everything(changed, reference)
    except MALFORMED:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 300 * MEGABYTE


@pytest.mark.parametrize("name", ["index", "scales", "lstm", "tables"])
def test_a_missing_entry_is_malformed_or_plain(chains, name):
    """Without its tables or LSTM a plane that was coded with them cannot come back as it was."""
    reference, whole = chains["resume"]
    changed = Archive({k: v for k, v in whole.entries.items() if k != name}, whole.streams, whole.encoded)
    with pytest.raises((*MALFORMED, AssertionError)):
        decode(changed, reference)


def replaced(archive: Archive, name: str, data: bytes) -> Archive:
    return Archive({**archive.entries, name: data}, archive.streams, archive.encoded, archive.reconstruction)


@pytest.mark.parametrize("size", [0, 1, LSTM_BYTES - 1, LSTM_BYTES + 1])
def test_an_lstm_of_another_size_is_malformed(chains, size):
    """One byte would broadcast over all weights."""
    reference, whole = chains["resume"]
    with pytest.raises(MALFORMED):
        decode(replaced(whole, "lstm", zstd.compress(bytes(size))), reference)


def test_bombs_are_refused_before_they_are_unpacked(chains):
    reference, whole = chains["resume"]
    bomb = zstd.compress(bytes(64 * MEGABYTE))
    for name in ("lstm", "tables"):
        tracemalloc.start()
        with pytest.raises(ValueError, match="claims"):
            decode(replaced(whole, name, bomb), reference)
        assert tracemalloc.get_traced_memory()[1] < 16 * MEGABYTE
        tracemalloc.stop()


def test_a_delta_without_its_reference_is_malformed(chains):
    for preset in PRESETS:
        _, whole = chains[preset]
        with pytest.raises(MALFORMED):
            decode(whole, None)


def test_streams_of_other_tensors_do_not_crash(chains):
    """Every stream in the place of every other of its length class."""
    reference, whole = chains["paper"]
    refs = list(whole.streams)
    draw = np.random.default_rng(0)
    for _ in range(15):
        shuffled = dict(zip(refs, [whole.streams[refs[k]] for k in draw.permutation(len(refs))], strict=True))
        with pytest.raises(MALFORMED):
            everything(Archive(whole.entries, shuffled, whole.encoded), reference)

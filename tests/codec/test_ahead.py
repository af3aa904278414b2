"""What an encoder announces is what its archive says; what was restored from it counts only then."""

import dataclasses
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from codec.chains import Archive, Zoo, encode
from codec.test_budget import adverse, saved_run

from ckzd.codec import zstd
from ckzd.codec.ahead import Ahead, announced
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.codec.budget import Budget
from ckzd.codec.decode import Decoder
from ckzd.codec.encode import Encoder
from ckzd.codec.methods.coding import ByUlps, CastOf, CopyOf, Exactly, Predicted, TensorCoding, WithLoss
from ckzd.codec.presets import PRESETS, preset_at
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.codec.records.reference_tensors import seal
from ckzd.codec.transform.adaptive_basis import SLACK
from ckzd.defaults import Effort
from ckzd.formats import read_checkpoint


class Heard:
    """An archive that was encoded with a listener: what that was told, and the encoder's files."""

    def __init__(self, path: Path, reference: "Heard | None", preset, held: ExitStack) -> None:
        self.lines: list[str] = []
        self.begun = 1
        self.reference = reference.archive.reconstruction if reference is not None else None
        reconstruction, scratch = [held.enter_context(tempfile.TemporaryFile()) for _ in range(2)]  # noqa: SIM115  # they are
        self.files = (reconstruction.fileno(), scratch.fileno())
        self.archive = Archive()
        checkpoint = in_tiles(read_checkpoint(path))
        held.callback(checkpoint.source.close)
        self.archive.encoded = Encoder(
            checkpoint,
            self.reference,
            preset,
            put=self.archive.put,
            add=self.archive.entries.__setitem__,
            reconstruction=reconstruction,
            scratch=scratch,
            listener=self,
        ).encode()
        self.archive.reconstruction = Reconstruction(reconstruction)

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def begin_again(self) -> None:
        self.lines.clear()
        self.begun += 1

    @property
    def decoder(self) -> Decoder:
        return Decoder.from_reference(self.archive.entry, self.archive.streams.__getitem__, self.reference)

    def codings(self) -> list[TensorCoding]:
        assert self.lines[-1] == ""
        return [announced(line, self.files) for line in self.lines if line]

    def ahead(self) -> Ahead:
        ahead = Ahead(self.reference, self.files)
        ahead.restore(iter(self.lines))
        return ahead


@pytest.fixture
def held():
    with ExitStack() as stack:
        yield stack


def heard_run(place: Path, preset, held: ExitStack) -> list[Heard]:
    """A base and two deltas of everything at once, one weight pruned; beside it averages, casts, and what is calm."""
    zoo, chain = Zoo(), []
    calm = zoo._random(5000).bfloat16()
    averages = {name: zoo.model[name].detach().clone() for name in ("wide", "cube")}
    for number in range(3):
        zoo.advance()
        with torch.no_grad():
            zoo.model["deep.0.w"][2:5] = 0.0
        for name, average in averages.items():
            average.lerp_(zoo.model[name].detach(), 0.2)
        calm[zoo._random(5000) > 1.5] *= 1.01
        path = zoo.save(place / f"step_{zoo.step}.pt", broken=number == 1)
        narrow = {name: zoo.model[name].detach().bfloat16() for name in ("deep.1.w", "vector")}
        with_more = {"narrow": narrow, **torch.load(path), "average": averages, "calm": {"row": calm}}
        torch.save(with_more | {"narrow_twin": {name: each.clone() for name, each in narrow.items()}}, path)
        chain.append(Heard(path, chain[-1] if chain else None, preset, held))
    return chain


def kinds(codings: list[TensorCoding]) -> set[object]:
    """Ways in which they are coded, and what else some of them have."""
    found: set[object] = {type(coding.way) for coding in codings}
    found |= {"masked" for coding in codings if getattr(coding.way, "zeros", None) is not None}
    return found | {"predicted" for coding in codings if getattr(coding.way, "predicted", None) is not None}


@pytest.mark.parametrize("effort", Effort)
@pytest.mark.parametrize("preset", ["resume", "archive", "paper"])
def test_what_is_restored_ahead_is_what_the_archive_restores_to(preset, effort, tmp_path, held):
    ways = set()
    for heard in heard_run(tmp_path, preset_at(preset, effort), held):
        ahead, decoder = heard.ahead(), heard.decoder
        assert ahead.foresaw(decoder.fingerprints())
        before = heard.reference.blob("skeleton") if heard.reference is not None else b""
        skeleton = zstd.decompress(heard.archive.entries["skeleton"], 1 << 30, before)
        identity = seal(ahead.own, decoder.lstm, skeleton, decoder.index.layout.to_json())
        assert identity == heard.archive.encoded.reconstruction
        assert ahead.followed_what_is_in(heard.archive.reconstruction)
        ways |= kinds(heard.codings())
    assert ways == {Exactly, CopyOf, CastOf, WithLoss, "masked"} | (
        set() if preset == "paper" else {ByUlps, "predicted"}
    )


def test_a_listener_changes_no_byte(tmp_path, held):
    (first, *_) = heard_run(tmp_path, PRESETS["resume"], held)
    plain = encode(tmp_path / "step_4.pt")
    assert plain.entries == first.archive.entries
    assert plain.streams == first.archive.streams


def test_a_preset_that_loses_nothing_announces_nothing(tmp_path, held):
    for heard in heard_run(tmp_path, PRESETS["lossless"], held):
        assert heard.lines == []
        assert not heard.ahead().foresaw(heard.decoder.fingerprints())


def test_an_encoder_that_begins_again_says_so_before_it_announces_others(tmp_path, held):
    tight = dataclasses.replace(PRESETS["resume"], budget=Budget(1e-9, 1.0))
    reference = None
    for path in saved_run(tmp_path, adverse):
        reference = heard = Heard(path, reference, tight, held)
        assert heard.begun > 1
        assert heard.ahead().foresaw(heard.decoder.fingerprints())


def lies_of_prediction(predicted: Predicted | None) -> list[Predicted | None]:
    """Likewise of what a weight follows."""
    if predicted is None:
        return []
    change, by, other = dataclasses.replace, predicted.by, predicted.other
    coefficients = {name: getattr(by, name) + 0.5 for name in ("own", "now", "before")}
    found = [change(predicted, by=change(by, **{name: each})) for name, each in coefficients.items()]
    found.append(change(predicted, by=change(by, other=by.other + 1)))
    found.append(change(predicted, other=change(other, path=("other", *other.path))))
    found.append(change(predicted, other=change(other, dtype="float16")))
    return [*found, None]


def lies(coding: TensorCoding) -> list[TensorCoding]:
    """The same with one thing changed, for each thing that can be."""
    change = dataclasses.replace
    found = [change(coding, tensor=change(coding.tensor, path=("other", *coding.tensor.path)))]
    found.append(change(coding, tensor=change(coding.tensor, shape=(*coding.tensor.shape, 1))))
    if coding.scales is not None:
        rows, columns = coding.scales.rows, coding.scales.columns
        found.append(change(coding, scales=change(coding.scales, rows=rows + np.int16(1))))
        found.append(change(coding, scales=change(coding.scales, columns=columns - np.int16(1))))
        found.append(change(coding, scales=change(coding.scales, reach=None)))
    match coding.way:
        case Exactly(values):
            altered = np.frombuffer(bytes([values.tobytes()[0] ^ 1]) + values.tobytes()[1:], values.dtype)
            found.append(change(coding, way=Exactly(altered.reshape(values.shape))))
            found.append(change(coding, way=CopyOf(coding.tensor.path)))
        case CopyOf(path):
            found.append(change(coding, way=CopyOf((*path, "else"))))
        case CastOf(path, dtype):
            found.append(change(coding, way=CastOf((*path, "else"), dtype)))
            found.append(change(coding, way=CastOf(path, "float16")))
            found.append(change(coding, way=CopyOf(path)))
        case ByUlps(coded, step):
            found.append(change(coding, way=ByUlps(change(coded, levels=coded.levels + np.int16(1)), step)))
            found.append(change(coding, way=ByUlps(change(coded, head=b"\xff"), step)))
            found.append(change(coding, way=ByUlps(coded, step + 1.0)))
        case WithLoss(method, coded, step, zeros) as way:
            levels = coded.levels.copy()
            levels.flat[-1] += 1
            found.append(change(coding, way=change(way, coded=change(coded, levels=levels))))
            found.append(change(coding, way=change(way, coded=change(coded, head=coded.head + b"\0"))))
            found.append(change(coding, way=change(way, step=step * 2)))
            found.append(change(coding, way=change(way, zeros=b"" if zeros is None else zeros + b"\0")))
            found.append(change(coding, way=change(way, method=next(m for m in type(method) if m is not method))))
            found += [change(coding, way=change(way, predicted=lie)) for lie in lies_of_prediction(way.predicted)]
    return found


def test_whatever_is_announced_wrongly_was_not_foreseen(tmp_path, held):
    """Of tensors that are coded in all ways: each thing that is said of them."""
    heard = heard_run(tmp_path, PRESETS["resume"], held)[2]
    assert kinds(heard.codings()) == {Exactly, CopyOf, CastOf, ByUlps, WithLoss, "masked", "predicted"}
    codings, said = heard.codings(), list(heard.decoder.fingerprints())
    assert [coding.fingerprint(SLACK) for coding in codings] == said
    checked = 0
    for position, coding in enumerate(codings):
        for lie in lies(coding) if coding.tensor.elements else []:
            assert lie.fingerprint(SLACK) != said[position]
            checked += 1
        assert coding.fingerprint(None) != said[position]
    assert checked > 100
    ahead = heard.ahead()
    for others in (said[:-1], [*said, said[-1]], said[::-1]):
        assert not ahead.foresaw(others)


def test_what_others_followed_must_be_what_is_written(tmp_path, held):
    """Values that copies, casts and predictions need are read from what the encoder has written of the others."""
    heard = heard_run(tmp_path, PRESETS["resume"], held)[2]
    ahead, written = heard.ahead(), heard.archive.reconstruction
    assert ahead.followed_what_is_in(written)
    real, ways = Reconstruction.get, [coding.way for coding in heard.codings()]
    others = {way.path for way in ways if isinstance(way, CopyOf | CastOf)}
    others |= {way.predicted.other.path for way in ways if getattr(way, "predicted", None) is not None}
    assert len(others) >= 3
    for path in others:

        def altered(reconstruction, key, field, path=path):
            found = real(reconstruction, key, field)
            return found + found.dtype.type(1) if key == path and field == "weights" else found

        with mock.patch.object(Reconstruction, "get", altered):
            assert not ahead.followed_what_is_in(written)


def test_what_follows_others_is_announced_after_them(tmp_path, held):
    """In a turn of its own: masters may stand behind their casts in the file."""
    heard = heard_run(tmp_path, PRESETS["resume"], held)[2]
    end = heard.lines.index("")
    assert heard.lines.count("") == 2
    for lines, is_second in ((heard.lines[:end], False), (heard.lines[end + 1 : -1], True)):
        ways = [announced(line, heard.files).way for line in lines]
        assert any(isinstance(way, CastOf) for way in ways) == is_second
        assert any(isinstance(way, WithLoss) and way.predicted is not None for way in ways) == is_second


def test_a_tensor_that_follows_one_that_is_not_there_is_an_error(tmp_path, held):
    heard = heard_run(tmp_path, PRESETS["resume"], held)[2]
    for line in heard.lines[heard.lines.index("") + 1 : -1]:
        with pytest.raises(ValueError, match="which is not there yet"):
            Ahead(heard.reference, heard.files).restore(iter([line]))


def test_an_announced_array_that_is_not_there_is_an_error(tmp_path, held):
    heard = heard_run(tmp_path, PRESETS["resume"], held)[0]
    with tempfile.TemporaryFile() as empty, pytest.raises(ValueError, match=r"an announced array of .* ends after 0"):
        Ahead(None, (empty.fileno(), empty.fileno())).restore(iter(heard.lines))
    with pytest.raises(ValueError, match="announced as"):
        announced('[[[["a"], "float32", [1], 4, []], null, ["otherwise"]], {}]', (0, 0))

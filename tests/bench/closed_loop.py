"""A run encoded in closed loop, in memory, up to its last checkpoint's levels: what benchmarks of the codec need."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.survey import survey
from ckzd.codec.choose import Chooser
from ckzd.codec.encode import Encoder
from ckzd.codec.presets import Preset
from ckzd.codec.records.reconstruction import ArrayFile, Reconstruction, ReconstructionWriter
from ckzd.formats import read_checkpoint


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of all of them: checkpoints of one run, oldest first, and a preset."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--preset", default="resume")
    return parser


def reconstruction_of(path: Path, reference: Reconstruction | None, preset: Preset) -> Reconstruction:
    """Encode a checkpoint for what its successor needs of it; the streams are thrown away."""
    file = io.BytesIO()
    Encoder(
        read_checkpoint(path),
        reference,
        preset,
        put=lambda kind, data: (kind, 0, len(data)),
        add=lambda _name, _data: None,
        reconstruction=file,
        scratch=io.BytesIO(),
    ).encode()
    return Reconstruction(file)


def chain_of(paths: Sequence[Path], preset: Preset) -> Reconstruction | None:
    """The reconstruction of the last of these, each encoded against the one before it; None of none."""
    reference = None
    for path in paths:
        reference = reconstruction_of(path, reference, preset)
    return reference


def choices_of(path: Path, reference: Reconstruction | None, preset: Preset) -> Chooser:
    """One checkpoint's levels, not yet coded."""
    inputs = Inputs(read_checkpoint(path), reference)
    reconstruction, scratch = ReconstructionWriter(io.BytesIO()), ArrayFile(io.BytesIO())
    chooser = Chooser(inputs, survey(inputs, preset), preset, reconstruction, scratch)
    chooser.run()
    return chooser

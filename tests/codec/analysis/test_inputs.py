"""How often a tensor is read: a checkpoint is large, and its disk is the training's."""

from collections import Counter
from dataclasses import dataclass, field, replace
from io import BytesIO

import pytest
import torch

from ckzd.checkpoint import Source
from ckzd.codec.encode import Encoder
from ckzd.codec.presets import PRESETS
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.formats import read_checkpoint


@dataclass
class CountingSource:
    """Counts the reads at each place."""

    source: Source
    reads: Counter[tuple[int, int]] = field(default_factory=Counter)

    def read(self, file, offset, nbytes):
        self.reads[file, offset] += 1
        return self.source.read(file, offset, nbytes)

    def close(self):
        self.source.close()


def saved_run(run, count):
    """Checkpoints of a network of which no two matrices have one shape, with its AdamW, some integers and doubles."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 600), torch.nn.Tanh(), torch.nn.Linear(600, 300))
    optimizer = torch.optim.AdamW(model.parameters())
    run.mkdir()
    paths = []
    for step in range(1, count + 1):
        optimizer.zero_grad()
        model(torch.randn(8, 40)).square().mean().backward()
        optimizer.step()
        paths.append(run / f"step_{step}.pt")
        odd = {"count": torch.arange(1000), "double": torch.linspace(0, 1, 300).double()}
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, **odd}, paths[-1])
    return paths


@pytest.mark.parametrize("preset", ["resume", "archive", "lossless"])
def test_a_tensor_is_read_at_most_three_times(preset, tmp_path):
    reference = None
    for path in saved_run(tmp_path / "run", 3):
        checkpoint = read_checkpoint(path)
        source, kept = CountingSource(checkpoint.source), BytesIO()
        Encoder(
            replace(checkpoint, source=source),
            reference,
            PRESETS[preset],
            put=lambda kind, data: (kind, 0, len(data)),
            add=lambda _name, _data: None,
            reconstruction=kept,
            scratch=BytesIO(),
        ).encode()
        reference = Reconstruction(kept)
        holes = {(0, hole.offset) for hole in checkpoint.files[0].holes}
        assert len(holes) > 12
        assert max(source.reads[place] for place in holes) <= 3
        source.close()

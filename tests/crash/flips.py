"""Every single bit of a small chain flipped, one at a time, before the replacement of what hangs on it.

usage: flips.py [--every N] (only every Nth bit)
Three checkpoints of a small network are archived as a chain. For each bit of each of the three archives: the bit is
flipped, the third checkpoint is to be replaced by its archive, and must be refused, with all of its bytes where they
were. Prints how many bits there were and what was replaced on top of damage; exits with 1 if anything was. At last the
undamaged chain replaces it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import ckzd
from ckzd.chains import ArchiveRecord, chain
from ckzd.errors import CkzdError
from ckzd.operations.replace import replace
from ckzd.store import Store, default_store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N")
    with tempfile.TemporaryDirectory() as place:
        bits, lost = flip_all(Path(place), parser.parse_args().every)
    print(f"{bits} bits of three archives flipped before a replacement: {lost} originals replaced on top of it")
    return int(lost > 0)


def flip_all(place: Path, every: int) -> tuple[int, int]:
    """How many bits were flipped, and how often the original went all the same."""
    checkpoints = trained(place / "run", 3)
    last = [Path(ckzd.compress(checkpoint).archive) for checkpoint in checkpoints][-1]
    store, content = Store.open(default_store(place / "run")), checkpoints[-1].read_bytes()
    bits = lost = 0
    for archive in [link.path for link in chain(ArchiveRecord.read(last))]:
        whole = archive.read_bytes()
        for bit in range(0, 8 * len(whole), every):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            archive.write_bytes(damaged)
            lost += is_replaced(checkpoints[-1], last, store, content)
            bits += 1
        archive.write_bytes(whole)
    if not is_replaced(checkpoints[-1], last, store, content):
        raise AssertionError("what is sound was refused")
    return bits, lost


def is_replaced(checkpoint: Path, archive: Path, store: Store, content: bytes) -> bool:
    """Whether the original went. If so it is put back."""
    try:
        replace(checkpoint, archive, store)
    except CkzdError:
        if checkpoint.read_bytes() == content:
            return False
    checkpoint.write_bytes(content)
    return True


def trained(run: Path, count: int) -> list[Path]:
    """Checkpoints of a small network and its AdamW."""
    torch.manual_seed(0)
    run.mkdir()
    model = torch.nn.Linear(12, 12)
    optimizer = torch.optim.AdamW(model.parameters())
    paths = []
    for step in range(1, count + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 12)).square().mean().backward()
        optimizer.step()
        paths.append(run / f"step_{step}.pt")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, paths[-1])
    return paths


if __name__ == "__main__":
    sys.exit(main())

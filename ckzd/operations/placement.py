"""On which device one checkpoint is encoded."""

from functools import cache
from importlib.util import find_spec

from ckzd.codec.presets import Preset
from ckzd.gpus import gpus


def device_for(preset: Preset, name: str) -> str:
    """Where the preset's bases are turned and its LSTM is trained; ConfigError for a device that is not there.

    `auto` is a GPU that nobody computes on, if torch sees one and the preset has work for it.
    """
    if name == "auto":
        return (_idle_gpu() if preset.has_work_for_gpu else None) or "cpu"
    if name == "cpu":
        return name
    from ckzd.codec.paper import train  # noqa: PLC0415  # a second of torch, for who named a GPU

    device = train.pick_device(name)
    return device if preset.has_work_for_gpu else "cpu"


@cache
def _idle_gpu() -> str | None:
    """Torch's name of it. Asked once a process: from then on it is we who compute there."""
    idle = {gpu.uuid for gpu in gpus() if not gpu.busy}
    if not idle or find_spec("torch") is None:
        return None
    from ckzd.codec.algebra.on_torch import idle_device  # noqa: PLC0415  # a second of torch, for who has a GPU to spare

    return idle_device(idle)

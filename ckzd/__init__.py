"""ckzd: compress training checkpoints against the ones before them, prove it, and give them back.

The whole library surface; each name loads its part when it is first used, so that `import ckzd` is free in a trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ckzd.errors import CkzdError

if TYPE_CHECKING:
    from ckzd.operations.compress import compress
    from ckzd.operations.ensure import ensure_restored
    from ckzd.operations.inspect import inspect
    from ckzd.operations.restore import restore
    from ckzd.operations.verify import verify

__version__ = "0.2.0"

__all__ = ["CkzdError", "__version__", "compress", "ensure_restored", "inspect", "restore", "verify"]

_HOMES = {
    "compress": "ckzd.operations.compress",
    "ensure_restored": "ckzd.operations.ensure",
    "inspect": "ckzd.operations.inspect",
    "restore": "ckzd.operations.restore",
    "verify": "ckzd.operations.verify",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ckzd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

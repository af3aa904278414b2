"""The codec's inner loops: compiled where ckzd was installed with a C compiler at hand, else the same in NumPy.

`kernels` are those in use; which they are decides how long something takes, and nothing else.
"""

from types import ModuleType

from ckzd.codec.kernels import plain
from ckzd.codec.kernels.native import Native, library

_built = library()
kernels: Native | ModuleType = plain if _built is None else Native(_built)
is_compiled = _built is not None

"""The codec's inner loops: compiled where ckzd was installed with a C compiler at hand, else the same in NumPy.

`kernels` and `elementwise` are those in use; which they are decides how long something takes, and nothing else.
"""

from types import ModuleType

from ckzd.codec.kernels import plain, plain_elementwise
from ckzd.codec.kernels.native import Native, library
from ckzd.codec.kernels.native_elementwise import NativeElementwise

_built = library()
kernels: Native | ModuleType = plain if _built is None else Native(_built)
elementwise: NativeElementwise | ModuleType = plain_elementwise if _built is None else NativeElementwise(_built)
is_compiled = _built is not None

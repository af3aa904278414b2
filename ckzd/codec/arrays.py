"""The array types of the codec, by what they hold."""

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.float32] | npt.NDArray[np.float64]  # (R, C)
Plane = npt.NDArray[np.int16]  # (R, C) levels of one tensor seen as a matrix
ContextLevels = npt.NDArray[np.int8]  # (R, C) levels as later planes see them, cut off at 127
Trend = npt.NDArray[np.int8]  # (R, C) a decoded residual, Fisher-weighted, in 1/32 steps, cut off at 127
HalfOctaves = npt.NDArray[np.int8]  # (R, C) second moments over their mean, cut off at -64 and 63
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]  # indices into tables.FREQUENCY
Scale = npt.NDArray[np.int16]  # codes of row or column means, eight to an octave

MAX_LEVEL = 32767  # of a plane

"""The fixed parts of ZIP records (APPNOTE 6.3.10, 4.3, 4.5): of archives that we write, and of files that we read."""

import struct

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END_64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR_64 = struct.Struct("<4sIQI")
MAX_END_BYTES = END_64.size + LOCATOR_64.size + END.size
LIMIT_16, LIMIT_32 = 0xFFFF, 0xFFFFFFFF  # a field with this value says "see the ZIP64 field"

"""Quantities in few characters, as people read them."""


def plain_bytes(nbytes: float) -> str:
    """17394081 -> "17.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def plain_age(seconds: float) -> str:
    """9000 -> "2 h"; what lies in the future is as old as now."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"

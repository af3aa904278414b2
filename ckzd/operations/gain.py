"""What an archive must gain before its original may go."""

LARGEST_SHARE = 0.95  # of the original: a chain to depend on costs more than a twentieth of the space is worth


def too_little(original_bytes: int, archive_bytes: int) -> str | None:
    """None if a replacement gains enough, else why the original stays."""
    if archive_bytes <= LARGEST_SHARE * original_bytes:
        return None
    share = archive_bytes / max(original_bytes, 1)
    return f"its archive has {share:.0%} of its size: too little is gained, it stays"

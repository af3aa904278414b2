"""What a compression tells of itself while it runs. Status, logs and metrics carry these words: an interface."""

from collections.abc import Callable
from enum import StrEnum


class Stage(StrEnum):
    """What is begun (`read`, `encode`, `accept`), or done."""

    READ = "read"
    ENCODE = "encode"
    WRITTEN = "written"
    VERIFIED = "verified"
    ACCEPT = "accept"
    ACCEPTED = "accepted"
    PUBLISH = "publish"
    REPLACED = "replaced"


OnStage = Callable[[Stage, float], None]  # and how much of it is done, 0 to 1

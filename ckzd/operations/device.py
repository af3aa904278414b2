"""Is a device there? Asked of torch in a process of its own: a daemon never loads it."""

import sys

from ckzd.codec.paper.train import pick_device
from ckzd.errors import CkzdError
from ckzd.operations.child import error_line


def main(names: list[str]) -> int:
    """Ends with 0 if all are there, else says which is not."""
    try:
        for name in names:
            pick_device(name)
    except CkzdError as error:
        print(error_line(error), file=sys.stderr)  # noqa: T201  # the parent reads it
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m ckzd` is `ckzd`."""

from ckzd.cli import main

if __name__ == "__main__":
    main()

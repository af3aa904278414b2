"""The daemon: watch, settle, journal, hand to workers, replace, and tell."""

"""Levels <-> bytes."""

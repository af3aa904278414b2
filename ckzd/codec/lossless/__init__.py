"""Exact coding: what loses nothing."""

"""Exact linear algebra on integers in float64: on the cores, or on a GPU, with the same bits."""

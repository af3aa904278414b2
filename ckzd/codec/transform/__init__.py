"""Residuals <-> levels."""

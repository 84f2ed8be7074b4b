"""Aligned models to verified bundles: graph, precision, parity, packaging."""

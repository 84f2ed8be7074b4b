"""Aligned models to verified bundles: graph, precision, parity, packaging."""

import os

# ONNX Runtime's official builds report usage to their maker unless told not to (Privacy.md in the wheel).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

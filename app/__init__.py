"""The service: a bundle behind HTTP. Needs one ONNX Runtime, never torch."""

"""The paths, one file each. Every judging route reads in order: body, options, vectors, judgments, reply."""

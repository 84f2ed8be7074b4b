"""The science: from human odd-one-out judgments to aligned models. Needs torch."""

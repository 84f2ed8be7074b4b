"""One file a recipe: its exact command, hardware, time, expected figures and source stand in its docstring."""

"""One file a command: its name is the file's, with `-` for `_`.

The docstring is what `--help` shows (its first line in the list of commands); `add_options(parser)` says what it
takes; `do(args)` does it. Heavy imports stand inside the two functions, so that the list of commands needs no torch.
"""

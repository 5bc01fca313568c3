"""The commands of `python -m minipeft`, one module each:

    HELP       one line                    EXAMPLE    one command to try
    arguments(parser)                      run(args): results on stdout, progress on stderr

`run` raises UsageError for impossible arguments (exit status 2); ValueError, TypeError, OSError and
FloatingPointError end the program with one line and exit status 1.
"""


class UsageError(Exception):
    """The arguments cannot be meant: what was wanted, what was got."""

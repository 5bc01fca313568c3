"""The command line: `python -m minipeft COMMAND ...` or `minipeft COMMAND ...`."""
import argparse
import codecs
import importlib
import io
import sys

import torch

from .cli import COMMANDS, UsageError

# For an output whose encoding lacks them; any other character is escaped.
SPELT = {"≠": "!=", "±": "+-", "→": "->", "α": "alpha", "√": "sqrt ", "Δ": "delta "}


def spelt(error: UnicodeError) -> tuple[str, int]:
    """What to print for characters that the output's encoding lacks, in the form codecs wants."""
    if not isinstance(error, UnicodeEncodeError):
        return "?", error.end
    lacking = error.object[error.start:error.end]
    return "".join(SPELT.get(c, ascii(c)[1:-1]) for c in lacking), error.end


def never_fail_at_printing() -> None:
    """No output is worth losing minutes of work: Windows gives a redirected stdout cp1252."""
    codecs.register_error("spelt", spelt)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):         # a notebook or a test has others
            stream.reconfigure(errors="spelt")


def parser(argv: list[str]) -> argparse.ArgumentParser:
    """Knows every command, and the arguments of the one in `argv`: its module alone is imported,
    for some need packages that others do not."""
    top = argparse.ArgumentParser(prog="minipeft", description="Parameter-efficient fine-tuning, "
                                  "built to be understood.")
    top.set_defaults(parser=top)
    commands = top.add_subparsers(dest="command", required=True)
    for name, help_text in COMMANDS.items():
        sub = commands.add_parser(name, help=help_text, description=help_text,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        if argv[:1] == [name]:
            module = importlib.import_module(f".cli.{name}", __package__)
            module.arguments(sub)
            sub.epilog = f"example:  {module.EXAMPLE}"
            sub.set_defaults(run=module.run, parser=sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong usage."""
    torch.set_flush_denormal(True)     # before any tensor operation: the flag is the thread's
    never_fail_at_printing()
    argv = sys.argv[1:] if argv is None else argv
    try:
        args, unknown = parser(argv).parse_known_args(argv)
        if unknown:                 # parse_args would show the usage of the program, not of argv[0]
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)}")
        args.run(args)
    except UsageError as error:
        args.parser.error(str(error))
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        print(f"minipeft {argv[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nminipeft {argv[0]}: interrupted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

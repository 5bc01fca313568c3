"""The command line: `python -m minipeft COMMAND ...` or `minipeft COMMAND ...`."""
import argparse
import importlib
import sys

import torch

from .cli import UsageError

COMMANDS = ("compare", "pretrain")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="minipeft", description="Parameter-efficient fine-tuning, "
                                  "built to be understood.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f".cli.{name}", __package__)
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP,
                                  epilog=f"example:  {module.EXAMPLE}",
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        module.arguments(sub)
        sub.set_defaults(run=module.run, parser=sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong usage."""
    torch.set_flush_denormal(True)     # before any tensor operation: the flag is the thread's
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except UsageError as error:
        args.parser.error(str(error))
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        print(f"minipeft {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nminipeft {args.command}: interrupted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

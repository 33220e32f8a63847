"""The command line: thin, no logic. Each verb opens one door."""

import io
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from zsmld.cli.arguments import build_parser, parsers_of
from zsmld.cli.teaching import advice_after, unknown_verb, welcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: default those of the process.

    Returns:
        Exit status: 0 done, 1 done but some images could not be read, 2 refused, 130 interrupted.
    """
    # As stderr has it: a letter that a code page lacks ends no run.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = build_parser()
    verbs = parsers_of(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-") and given[0] not in verbs:
        parser.error(unknown_verb(given[0], verbs))
    options, rest = parser.parse_known_args(given)
    takes = hasattr(options, "overrides")
    unknown = [text for text in rest if not (takes and "=" in text and not text.startswith("-"))]
    if unknown:
        verbs.get(options.verb, parser).refuse(unknown)
    if rest:  # argparse takes a list in one place only; overrides may stand after options as well
        options.overrides += rest
    if options.version:
        from zsmld import __version__

        print(f"zsmld {__version__}")
        return 0
    if options.verb is None:
        print(welcome(), end="")
        return 0
    finished = False
    try:
        with warnings.catch_warnings():  # a sentence, without the line of code that said it
            warnings.showwarning = lambda message, *_, **__: print(f"zsmld {options.verb}: {message}", file=sys.stderr)
            status: int = options.run(options)
        finished = True
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, TypeError, OSError, ImportError) as error:  # an extra that is not installed
        print(f"zsmld {options.verb}: {error}", file=sys.stderr)
        if advice := advice_after(error, options.verb, getattr(options, "model", None)):
            print(f"zsmld {options.verb}: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"zsmld {options.verb}: interrupted", file=sys.stderr)
        return 130
    finally:
        _leave_processes(finished)
    return status


def _leave_processes(finished: bool) -> None:
    """Take leave of the other processes that `torchrun` started, while Python still runs.

    One whose connections to the others close while it is being torn down may abort, with a status that is not its own.
    """
    dist: Any = sys.modules.get("torch.distributed")  # whoever met others has loaded it
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return
    if finished or dist.get_backend() == "gloo":  # NCCL would wait for those that still work
        dist.destroy_process_group()

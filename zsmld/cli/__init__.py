"""The command line: thin, no logic. Each verb opens one door."""

import sys
import warnings
from collections.abc import Sequence

from zsmld.cli.arguments import build_parser

_WELCOME = """zsmld scores images against any list of words.

  zsmld demo                                             see it work, in a minute, with no network
  zsmld predict photos/ --model MODEL --words dog,beach  tag a folder
  zsmld recipes                                          trainings that come with zsmld
  zsmld train scenes_zsl                                 train one
  zsmld evaluate runs/scenes_zsl/model                   ZSL and GZSL figures, and a report to look at
  zsmld compare runs/a/report runs/b/report              is b better than a, and how sure is that
  zsmld calibrate runs/custom/model                      thresholds of its words, chosen on held-out seen words
  zsmld prepare nus_wide --root NUS-WIDE --output FOLDER check a download of a dataset, and index it

`zsmld VERB --help` says more, with an example.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: default those of the process.

    Returns:
        Exit status: 0 done, 1 done but some images could not be read, 2 refused, 130 interrupted.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if not all(hasattr(options, "overrides") and "=" in text and not text.startswith("-") for text in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes a list in one place only; overrides may stand after options as well
        options.overrides += rest
    if options.version:
        from zsmld import __version__

        print(f"zsmld {__version__}")
        return 0
    if options.verb is None:
        print(_WELCOME, end="")
        return 0
    try:
        with warnings.catch_warnings():  # a sentence, without the line of code that said it
            warnings.showwarning = lambda message, *_, **__: print(f"zsmld {options.verb}: {message}", file=sys.stderr)
            status: int = options.run(options)
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, TypeError, OSError) as error:
        print(f"zsmld {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"zsmld {options.verb}: interrupted", file=sys.stderr)
        return 130
    return status

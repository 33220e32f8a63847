"""Text files of zeros and ones, hundreds of megabytes of them, read a block at a time."""

from pathlib import Path

import numpy as np

_BLOCK = 1 << 24  # bytes; 8,000 lines of 1,000 tags


def read_ones(path: Path, width: int, problems: list[str]) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Where the ones are in a file of `width` digits 0 or 1 a line, with any blanks between them.

    Returns:
        Rows and columns of the ones, int32 and int16, in order, and the number of lines; None if a line is wrong, the
        first of which becomes a problem.
    """
    rows, columns, num_lines = [], [], 0
    rest, more = b"", True
    try:
        opened = path.open("rb")
    except OSError as error:
        problems.append(unreadable(path, error))
        return None
    with opened as file:
        while more:
            block = file.read(_BLOCK)
            more = len(block) > 0
            text = rest + block if more else rest.rstrip() + b"\n"
            written = len(text.rstrip())  # empty lines behind it may be the file's last: they wait
            end = (text.find(b"\n", written) + 1 or text.rfind(b"\n") + 1) if written else 0
            text, rest = text[:end], text[end:]
            digits = np.frombuffer(text.translate(None, b" \t\r"), np.uint8)
            count = len(digits) // (width + 1)
            table = digits[: count * (width + 1)].reshape(count, width + 1)
            # One comparison does for both digits: 48 and 49 differ in their last bit.
            right = len(digits) == table.size and (table[:, -1] == ord("\n")).all()
            if not right or not (table[:, :-1] | 1 == ord("1")).all():
                problems.append(_first_wrong_line(path, text, width, num_lines))
                return None
            row, column = np.divmod(np.flatnonzero(table[:, :-1] == ord("1")), width)
            rows.append((row + num_lines).astype(np.int32))
            columns.append(column.astype(np.int16))
            num_lines += count
    if not rows:
        return np.empty(0, np.int32), np.empty(0, np.int16), 0
    return np.concatenate(rows), np.concatenate(columns), num_lines


def unreadable(path: Path, error: OSError) -> str:
    """The problem that a file is a folder, is not ours to read, or sits on a broken disk."""
    return f"{path} must be a readable file, it is not: {error.strerror or error}; unpack or download it again"


def _first_wrong_line(path: Path, text: bytes, width: int, before: int) -> str:
    for number, line in enumerate(text.splitlines(), before + 1):
        digits = line.translate(None, b" \t\r")
        others = digits.translate(None, b"01")
        if others or len(digits) != width:
            got = f"{others[:12].decode('ascii', 'replace')!r} besides" if others else f"{len(digits):,}"
            return (
                f"{path} must have {width:,} digits 0 or 1 in each line, line {number:,} has {got}; "
                f"unpack or download it again"
            )
    return f"{path} must have {width:,} digits 0 or 1 in each line; unpack or download it again"


def read_column(path: Path) -> tuple[np.ndarray, dict[int, str]]:
    """One digit a line: values (M,) int8, −1 where a line is neither 0 nor 1, and those lines by number, from 1."""
    data = path.read_bytes().rstrip() + b"\n"
    digits = np.frombuffer(data.translate(None, b" \t\r"), np.uint8)
    if len(digits) % 2 == 0 and (digits[1::2] == ord("\n")).all() and (digits[::2] | 1 == ord("1")).all():
        return (digits[::2] - ord("0")).astype(np.int8), {}
    lines = [] if data == b"\n" else [line.strip() for line in data.split(b"\n")[:-1]]
    values = np.array([{b"0": 0, b"1": 1}.get(line, -1) for line in lines], np.int8)
    return values, {int(i) + 1: lines[i].decode("ascii", "replace") for i in np.flatnonzero(values < 0)}

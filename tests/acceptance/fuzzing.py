"""What the fuzz tests share: valid files, mutated, and the law that every reader of zsmld keeps for them.

Either a reader works, or it refuses in one of our sentences: a ValueError, TypeError or OSError that names the file or
the argument and says what it must be. It takes little processor time and little memory, starts no process, opens no
connection and writes nothing outside the folder it was given. To be refused by the system, for want of memory, is not
to be refused in one of our sentences, whatever sentence is made of it. ZSMLD_SOAK multiplies the examples.
"""

import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import keep
from hypothesis import given, settings
from hypothesis import strategies as st

TIMES = 2 if os.environ.get("ZSMLD_SOAK") else 1
OURS = (ValueError, TypeError, OSError, FileNotFoundError, FileExistsError)
_SECONDS, _BYTES = 20, 1 << 30
_NO_MEMORY = re.compile(r"allocate|bad_alloc|out of memory|enough memory", re.I)  # torch's is a RuntimeError

# What a byte, a field and a JSON value are changed to: limits of types, other types, and what other programs act upon.
_TOKENS = [b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"'", b",", b"\t", b"|", b"-1", b"1e309"]
_TOKENS += [b"nan", b"{", b"}", b"[" * 50, b"&a", b"*a", b"!!python/object", b"../", b"\xed\xa0\x80", b"\xe2\x80\xae"]
_TEXTS = ["", " ", "\n", "\0", "x" * 5000, "../../etc/passwd", "=cmd|' /C calc'!A0", "\ud800", "نمر", "é", "e\u0301"]
_TEXTS += ["<script>", "1", "nan", "{}", "%s", "a\nb", "🦓", "|", ",", "/dev/zero", "-1", "true"]
_NUMBERS = [0, -1, 1, 2, 255, 256, 2**31, 2**63, 10**9, 10**30, -(2**63) - 1, 0.5, 1e308, -0.0]
_NUMBERS += [float("nan"), float("inf"), -float("inf")]


class TooSlow(BaseException):
    """Nobody's `except Exception` takes this."""


# ------------------------------------------------------------------------------------------------------ mutations


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to four spans changed, cut out, doubled or exchanged; or the end cut off."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(found) + 1)
        stop = min(len(found), start + rng.choice([1, 1, 2, 4, 8, 64]))
        kind = rng.randrange(7)
        if kind == 0 and start < len(found):
            found[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[start:stop] = rng.randbytes(stop - start)
        elif kind == 2:
            del found[start:stop]
        elif kind == 3:
            found[start:start] = found[start:stop] * rng.choice([1, 2, 50])
        elif kind == 4:
            found[start:start] = rng.choice(_TOKENS)
        elif kind == 5:
            found[start:stop] = rng.choice([b"\0", b"\xff", b"\x7f"]) * (stop - start)
        elif rng.random() < 0.5:
            del found[start:]
    return bytes(found)


def mutated_value(rng: random.Random, old: Any = None) -> Any:
    """Another value in the place of one, of its type or of another."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice(_NUMBERS)
    if kind == 2:
        return rng.choice(_TEXTS)
    if kind == 3:
        return rng.choice([[], {}, [None], [[]], {"": None}, [{}], {"a": {"b": []}}])
    if kind == 4:
        return [old, old]
    if kind == 5:
        return {"value": old}
    if kind == 6 and isinstance(old, str):
        return old + rng.choice(_TEXTS)
    if kind == 7 and isinstance(old, (int, float)):
        return rng.choice([-old, old + 1, old * 10**6, str(old), float(old)])
    if kind == 8:
        deep: Any = old
        for _ in range(rng.choice([3, 60])):
            deep = rng.choice([[deep], {"a": deep}])
        return deep
    return rng.choice(_TEXTS if isinstance(old, str) else _NUMBERS)


def mutated_json(rng: random.Random, content: Any) -> Any:
    """One to three places of nested lists and mappings changed, removed, added or renamed; the content stays."""
    found = json.loads(json.dumps(content))
    for _ in range(rng.randint(1, 3)):
        places = list(_places(found))
        if not places:
            return mutated_value(rng, found)
        inner, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del inner[key]
        elif kind == 1 and isinstance(inner, list):
            inner.append(inner[key] if rng.random() < 0.5 else mutated_value(rng, inner[key]))
        elif kind == 1:
            inner[rng.choice(_TEXTS)] = inner[key]
        elif kind == 2 and isinstance(inner, dict):
            inner[rng.choice(_TEXTS + list(inner))] = inner.pop(key)
        elif kind == 3:
            inner_other, other = rng.choice(places)
            if _has(inner_other, other) and _has(inner, key):  # it may have gone with what held it
                inner[key] = json.loads(json.dumps(inner_other[other]))
        elif _has(inner, key):
            inner[key] = mutated_value(rng, inner[key])
    return found


def _has(inner: Any, key: Any) -> bool:
    return key in inner if isinstance(inner, dict) else key < len(inner)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def json_bytes(rng: random.Random, content: Any) -> bytes:
    """The JSON of something mutated, halves of surrogate pairs, NaN and all; now and then with its bytes mutated."""
    if rng.random() < 0.01:
        return b"[" * 100_000
    text = json.dumps(mutated_json(rng, content), ensure_ascii=rng.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, data) if rng.random() < 0.25 else data


def mutated_text(rng: random.Random, content: bytes, separator: bytes = b",") -> bytes:
    """Lines and fields of a text file changed, doubled, removed or exchanged; now and then its bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, content)
    lines = [line.split(separator) for line in content.split(b"\n")]
    for _ in range(rng.randint(1, 3)):
        line = rng.choice(lines)
        place = rng.randrange(len(line)) if line else 0
        kind = rng.randrange(6)
        if kind == 0:
            line.insert(place, str(mutated_value(rng, "x")).encode("utf-8", "surrogatepass"))
        elif kind == 1 and line:
            del line[place]
        elif kind == 2:
            lines.insert(rng.randrange(len(lines)), list(line))
        elif kind == 3 and len(lines) > 1:
            lines.remove(line)
        elif line:
            line[place] = str(mutated_value(rng, line[place].decode("latin-1"))).encode("utf-8", "surrogatepass")
    return b"\n".join(separator.join(line) for line in lines)


# ------------------------------------------------------------------------------------------------------------ the law

_watched: list[Path] = []  # the folder that may be written to, while a reader is at work
_seen: list[str] = []


_STARTS = {"os.system", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork", "pty.spawn", "socket.connect"}
_CHANGES = {"os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"}
_CHANGES_BOTH = {"os.rename", "os.link", "os.symlink"}  # what they take and what they make; os.replace is a rename


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event in _STARTS:
        _seen.append(f"{event} {arguments!r:.120}")
    changed: Sequence[Any] = ()
    if event in _CHANGES or (event == "open" and len(arguments) == 3 and _writes(arguments[2])):
        changed = arguments[:1]
    elif event in _CHANGES_BOTH:
        changed = arguments[:2]
    for place in changed:
        if not isinstance(place, (str, bytes, os.PathLike)) or not place:  # a file that is open already, or no name
            continue
        path = Path(os.path.abspath(os.fsdecode(place)))
        if event == "os.symlink" and place is arguments[0]:  # it is meant from where the link stands
            path = Path(os.path.abspath(os.path.join(os.path.dirname(os.fsdecode(arguments[1])), os.fsdecode(place))))
        allowed = [_watched[0], Path(os.environ.get("ZSMLD_CACHE", _watched[0])), Path(os.devnull)]
        if not any(path.is_relative_to(folder) for folder in allowed):
            _seen.append(f"{event} {path}")


def _writes(flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


sys.addaudithook(_audit)


@contextmanager
def bounded(folder: Path, seconds: float = _SECONDS) -> Iterator[None]:
    """Little time, little memory, and nothing done outside a folder.

    The time is the processor's, as other work on the machine is no fault of a reader's. The clock on the wall is
    pytest-timeout's, for the whole test: it ends a reader that only waits.

    Args:
        folder: that may be written to.
        seconds: of processor time, over all threads.
    """

    def stop(*_: object) -> None:
        raise TooSlow(f"not done after {seconds} s of processor time")

    former = signal.signal(signal.SIGPROF, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    _seen.clear()
    _watched.append(folder.resolve())
    try:
        yield
    except pytest.fail.Exception as error:  # pytest-timeout's; Hypothesis would take it, and read again with no clock
        raise TooSlow(str(error)) from error
    finally:
        _watched.clear()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not _seen, f"a reader must only read, it did {_seen}"


def is_refused(call: Callable[[], Any], folder: Path, names: Sequence[str], seconds: float = _SECONDS) -> bool:
    """Whether something valid or not is refused; an error that is not ours is the test's.

    Args:
        call: of a reader.
        folder: the only one that may be written to.
        names: one of these stands in the message, the file's name or an argument's.
        seconds: see `bounded`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with bounded(folder, seconds):
            try:
                call()
            except Exception as error:
                refusal = error
            else:
                return False
    text = str(refusal)
    ours = type(refusal) in OURS and " must " in text and any(name in text for name in names)
    if not ours:
        raise AssertionError(f"not our sentence: {type(refusal).__name__}: {text[:500]}") from refusal
    _assert_memory_was_not_asked_for(refusal)
    return True


def _assert_memory_was_not_asked_for(refusal: BaseException) -> None:
    """What ends a reader that takes too much is the limit above; readers make a sentence of that as of any damage."""
    waiting: list[BaseException | None] = [refusal]
    seen: set[int] = set()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise AssertionError(f"it asked for more than {_BYTES:,} bytes: {error!r:.300}") from refusal
        waiting += [error.__cause__, error.__context__]


def fuzz(
    change: Callable[[random.Random, Path], Any],
    call: Callable[[Path], Any],
    names: Sequence[str],
    examples: int = 60,
    min_refused: float = 0.05,
) -> None:
    """Mutate, read, and see that the law holds; some of what was mutated must have been refused, else nothing was hit.

    Args:
        change: writes a mutated file, or several, into an empty folder.
        call: reads them.
        names: see `is_refused`.
        examples: how many, before ZSMLD_SOAK multiplies them.
        min_refused: least share of them that must be refused.
    """
    counted = [0, 0]

    @settings(max_examples=examples * TIMES, derandomize=TIMES == 1, database=None, report_multiple_bugs=False)
    @given(seed=st.integers(0, 2**48))
    def each(seed: int) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place).resolve()
            change(random.Random(seed), folder)
            counted[0] += 1
            counted[1] += is_refused(lambda: call(folder), folder, names)

    each()
    if counted[1] < min_refused * counted[0]:
        pytest.fail(f"only {counted[1]} of {counted[0]} mutations were refused: they miss what is read")
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].rsplit(" (", 1)[0]
    keep(f"fuzzing of {test}", {"mutations": counted[0], "refused": counted[1]})

"""Values of a recipe: read from YAML and from overrides, and checked against the constructors that they are for."""

import difflib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, get_args

import yaml

# Arguments that a recipe does not give: other sections make them, or the command does.
_NOT_IN_RECIPE = {
    "dataset": {"split"},
    "decoder": {"encoder_dim", "text_dim", "num_classes", "num_global_tokens", "num_seen_words", "prior"},
    "prior": {"image_encoder", "text_encoder", "checkpoint_path", "pretrained"},
    "trainer": {
        *("model", "dataset", "val_dataset", "output", "augmentation", "image_augmentation", "features"),
        *("text_encoder", "progress", "configuration"),
    },
    "protocol": {"task", "num_seen", "num_unseen", "words_file"},
    "options": {"root", "problems"},  # of a dataset's reader
}


def _most_values(text: str) -> int:
    """What is more was repeated by anchors."""
    return max(100_000, len(text))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as version 1.2 has it in this: 48_17 is a text and not the number 4817, 1e-3 is a number."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_merged, self._most_merged = 0, _most_values(text)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (`<<`), each of which may take in what others have taken in, and many the same."""
        for merged in _merged_into(node):
            self.flatten_mapping(merged)
            self._num_merged += len(merged.value)
            if self._num_merged > self._most_merged:  # before they are
                raise yaml.YAMLError(f"it merges more than {self._most_merged:,} keys into its mappings")
        super().flatten_mapping(node)


def _merged_into(node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            several = value.value if isinstance(value, yaml.SequenceNode) else [value]
            yield from (one for one in several if isinstance(one, yaml.MappingNode))


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read_yaml(text: str) -> Any:
    """YAML with version 1.2's numbers; tags make nothing but plain values.

    Raises:
        yaml.YAMLError: if it is none, or repeats by its anchors what would be more than a recipe holds.
    """
    try:
        found = yaml.load(text, _Loader)
        num_values = _count_values(found, {})
    except (ValueError, RecursionError) as error:  # the 45th of a month, a number of 5,000 digits, lists without end
        raise yaml.YAMLError(str(error)) from error
    if num_values > (most := _most_values(text)):
        raise yaml.YAMLError(f"it holds more than {most:,} values, most by its anchors")
    return found


def _count_values(value: Any, counted: dict[int, int]) -> int:
    """How many values there are once what an anchor names is written out; without end if it holds itself."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in counted:
        counted[id(value)] = 10**18  # for what is inside and names it
        inner = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count_values(one, counted) for one in inner)
    return counted[id(value)]


def arguments_of(section: str, target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor that a section of a recipe may give."""
    hidden = _NOT_IN_RECIPE.get(section, set())
    return {
        name: p for name, p in inspect.signature(target).parameters.items() if name not in hidden and name != "self"
    }


def checked_values(
    section: str, given: dict[str, Any], target: Callable[..., Any], problems: list[str]
) -> dict[str, Any]:
    """Values of a section converted to their types; what is wrong goes to `problems`."""
    from jsonargparse import ArgumentParser

    arguments = arguments_of(section, target)
    checked: dict[str, Any] = {}
    for key, value in given.items():
        if key == "name" and section in ("dataset", "protocol"):
            checked[key] = value
        elif key not in arguments:
            names = ["name", *arguments] if section == "dataset" else list(arguments)
            problems.append(unknown_name(key, names, section))
        else:
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument(f"--{key}", type=arguments[key].annotation)
            if type(value) is int and str in get_args(arguments[key].annotation):
                value = str(value)  # a partition may be called 80
            if value is None and not _takes_none(arguments[key].annotation):  # jsonargparse takes it for a default
                problems.append(
                    f"{section}.{key} must be {inspect.formatannotation(arguments[key].annotation)}, got None"
                )
                continue
            try:
                checked[key] = parser.parse_object({key: value})[key]
            except Exception as error:  # jsonargparse has its own kinds; the reader needs key, type and value
                expected = inspect.formatannotation(arguments[key].annotation)
                if not isinstance(error, ArgumentError) and "validate" not in str(error):
                    raise
                problems.append(f"{section}.{key} must be {expected}, got {value!r:.200}")
    optional = given if section != "protocol" else {"name"}  # a protocol's name may follow from the dataset
    required = [name for name, p in arguments.items() if p.default is inspect.Parameter.empty and name not in optional]
    problems += [f"{section}.{name} must be given" for name in required]
    return checked


def _takes_none(annotation: Any) -> bool:
    return annotation in (Any, None, inspect.Parameter.empty) or type(None) in get_args(annotation)


def refusals(*builders: Callable[[], Any]) -> list[str]:
    """What the builders say against what they are given."""
    said = []
    for build in builders:
        try:
            build()
        except ValueError as error:
            said.append(str(error))
    return said


def override_value(content: dict[str, Any], override: str, problems: list[str]) -> None:
    """Put a dotted assignment such as "trainer.lr=2e-4" into nested mappings; what is wrong goes to `problems`."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        problems.append(f"override must be section.key=value, got {override!r}")
        return
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        value = text
    if value == "" and text.strip() in ("|", ">"):  # a block of YAML without lines; here it is a separator
        value = text.strip()
    inner: Any = content
    for key in keys[:-1]:
        inner[key] = dict(inner.get(key) or {}) if isinstance(inner.get(key), (dict, type(None))) else inner[key]
        inner = inner[key]
        if not isinstance(inner, dict):
            problems.append(f"override {override!r} must name a section with keys, {key} has none")
            return
    inner[keys[-1]] = value


def unknown_name(name: Any, known: Sequence[str], where: str) -> str:
    """A sentence about a name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(str(name), known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
    return f"{where}: unknown {name!r}; {hint}"


def default_of(parameter: inspect.Parameter) -> Any:
    """A parameter's default; what a dataclass makes afresh for each object is an empty mapping in all our doors."""
    if parameter.default is inspect.Parameter.empty:
        return None
    plain = (bool, int, float, str, tuple, type(None))
    return parameter.default if isinstance(parameter.default, plain) else {}

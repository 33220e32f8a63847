"""Which arguments of an `MLDecoder` fit together, and which of them a checkpoint stores."""

from numbers import Integral
from typing import Any, Literal, get_args

Output = Literal["shared", "cosine", "sum"]

# Options that are off are left out of checkpoints, so that earlier versions read what they understand.
_OFF = {
    "num_global_tokens": 0,
    "prior": None,
    "word_reach": 0.0,
    "num_seen_words": 0,
    "temperature": None,
    "descriptions": "mean",
    "prompts": False,
    "unit_positions": False,
}
_ANY_MODE = ("num_global_tokens", "unit_positions")  # options that class mode has too
# Beyond any head there is: what a file asks for must not overflow, or build layers without end.
_MOST = {
    **dict.fromkeys(("encoder_dim", "text_dim", "decoder_dim", "feedforward_dim", "num_heads"), 2**20),
    **dict.fromkeys(("num_classes", "num_groups", "num_seen_words"), 10**8),
    "num_layers": 1000,
}


def without_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments without the options that are off."""
    return {name: value for name, value in config.items() if name not in _OFF or value != _OFF[name]}


def check_arguments(given: dict[str, Any]) -> None:
    """Refuse arguments of an `MLDecoder` that contradict each other.

    Raises:
        ValueError: for the first that does not fit.
    """
    for name, most in _MOST.items():
        value = given[name]
        least = 1 if name.endswith("_dim") else 0  # what is said of a number of 0 is said below
        if value is None and name in ("text_dim", "num_classes", "num_groups"):
            continue
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most:,}, got {value!r}; correct it")
    text_dim, num_classes, output = given["text_dim"], given["num_classes"], given["output"]
    num_groups, learnable_queries = given["num_groups"], given["learnable_queries"]
    decoder_dim, num_heads, num_layers = given["decoder_dim"], given["num_heads"], given["num_layers"]
    if (text_dim is None) == (num_classes is None):
        raise ValueError(
            f"exactly one of text_dim (word queries) and num_classes (class queries) must be given, "
            f"got text_dim={text_dim}, num_classes={num_classes}; leave one of them out"
        )
    if num_heads < 1 or decoder_dim % num_heads:
        raise ValueError(
            f"num_heads must divide decoder_dim={decoder_dim}, got {num_heads}; choose one of "
            f"{[h for h in (1, 2, 4, 8, 12, 16) if decoder_dim % h == 0]}"
        )
    if not 0 <= given["dropout"] <= 1:
        raise ValueError(f"dropout must be a probability, got {given['dropout']}; the paper uses 0.1")
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}; the paper uses 1")
    if output not in get_args(Output):
        raise ValueError(f"output must be 'shared', 'cosine' or 'sum', got {output!r}; the paper's is 'shared'")
    if num_classes is not None and (num_classes < 1 or output != "shared"):
        raise ValueError(
            f"class mode needs num_classes ≥ 1 and output='shared', got {num_classes} and {output!r}; "
            f"the cosine output needs word queries (text_dim)"
        )
    if num_classes is None and (num_groups is not None or learnable_queries):
        raise ValueError(
            f"num_groups and learnable_queries belong to class mode, got num_groups={num_groups}, "
            f"learnable_queries={learnable_queries} with text_dim; leave them out"
        )
    if num_groups is not None and num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}; the paper uses 100")
    if given["num_global_tokens"] not in (0, 1):
        raise ValueError(
            f"num_global_tokens must be 0 or 1, got {given['num_global_tokens']}; take the image encoder's"
        )
    if given["descriptions"] not in ("mean", "attention"):
        raise ValueError(f"descriptions must be 'mean' or 'attention', got {given['descriptions']!r}; choose one")
    of_words = sorted(name for name, off in _OFF.items() if given[name] != off and name not in _ANY_MODE)
    if num_classes is not None and of_words:
        raise ValueError(f"class mode must come without {of_words}, which need word queries; leave them out")
    if output == "shared" and (given["prompts"] or given["temperature"] is not None):
        raise ValueError(
            "prompts and temperature must come with output='cosine' or 'sum', got 'shared'; choose another output"
        )
    if given["temperature"] is not None and not given["temperature"] > 0:
        raise ValueError(f"temperature must be positive, got {given['temperature']}; logits start within ± this")
    if not given["word_reach"] >= 0 or (given["word_reach"] and given["prior"] is None):
        raise ValueError(
            f"word_reach must be ≥ 0, and have a prior that decides beyond it, got {given['word_reach']} and "
            f"{'a' if given['prior'] else 'no'} prior; give the head a prior, or leave word_reach at 0"
        )
    prior = given["prior"]
    if prior is None:
        return
    names = ("encoder_dim", "text_dim", "num_global_tokens")
    own, its = [given[name] for name in names], [getattr(prior, name) for name in names]
    if own != its:
        raise ValueError(f"prior must have {names} = {own}, as the head has, got {its}; build it for the same encoders")
    if prior.standardization != "none":
        raise ValueError(
            f"prior must have standardization='none' inside a head, which learns its scale, got "
            f"{prior.standardization!r}; leave it out"
        )
    if prior.descriptions != "mean" and given["descriptions"] != "attention":
        raise ValueError(
            f"prior must have descriptions='mean' inside a head that takes their mean, got {prior.descriptions!r}; "
            f"leave it out, or set the head's descriptions='attention'"
        )

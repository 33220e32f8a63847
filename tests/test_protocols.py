"""Protocols: which words are ranked, and what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsmld.protocols import PROTOCOLS, Protocol
from zsmld.vocabulary import Vocabulary

law = settings(max_examples=40)


def vocabulary(num_seen, num_unseen, shuffled=0):
    """Seen and unseen words in any order."""
    order = np.random.default_rng(shuffled).permutation(num_seen + num_unseen)
    words = [f"word {i}" for i in order]
    return Vocabulary(words, seen=[word for word in words if int(word.split()[1]) < num_seen])


@law
@given(num_seen=st.integers(1, 9), num_unseen=st.integers(1, 9), shuffled=st.integers(0, 99))
def test_zsl_ranks_the_unseen_words_only_and_gzsl_all_in_label_order(num_seen, num_unseen, shuffled):
    words = vocabulary(num_seen, num_unseen, shuffled)
    zsl = PROTOCOLS["zsl"].ranked_labels("zsl", words)
    assert tuple(words.words[label] for label in zsl) == words.unseen
    for part, protocol in (("gzsl", PROTOCOLS["gzsl"]), ("supervised", PROTOCOLS["supervised"])):
        assert protocol.ranked_labels(part, words).tolist() == list(range(len(words)))
    assert PROTOCOLS["gzsl"].ranked_labels("zsl", words).tolist() == zsl.tolist()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_known_protocol_is_called_by_its_name(name):
    protocol = Protocol.named(name)
    assert protocol == PROTOCOLS[name]
    assert protocol.name == name
    assert f"_{protocol.task}_" in f"_{name}_"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_defaults_are_those_of_most_papers(name):
    policies = PROTOCOLS[name].policies()
    assert policies["keep_unlabelled"] is True
    assert policies["empty_words"] == "zero"
    assert policies["average_precision"] == "exact"


def test_a_zsl_protocol_has_one_part_and_a_gzsl_protocol_two():
    for name, protocol in PROTOCOLS.items():
        assert protocol.parts == (("zsl", "gzsl") if protocol.task == "gzsl" else (protocol.task,)), name


@pytest.mark.parametrize(
    "dataset, counts",
    [
        ("nus_wide_{}", (925, 81)),
        ("coco_{}_48_17", (48, 17)),
        ("coco_{}_65_15", (65, 15)),
        ("scenes_{}", (80, 20)),
    ],
)
def test_the_partitions_of_the_literature(dataset, counts):
    for task, num_ranked in (("zsl", counts[1]), ("gzsl", sum(counts)), ("seen", counts[0])):
        protocol = PROTOCOLS[dataset.format(task)]
        assert (protocol.num_seen, protocol.num_unseen) == counts
        assert len(protocol.ranked_labels(task, vocabulary(*counts))) == num_ranked


def test_words_that_are_not_ranked_may_be_left_out_but_not_be_others():
    assert len(PROTOCOLS["coco_zsl_48_17"].ranked_labels("zsl", vocabulary(0, 17))) == 17
    assert len(PROTOCOLS["coco_seen_48_17"].ranked_labels("seen", vocabulary(48, 0))) == 48
    for name, counts in (("coco_zsl_48_17", (47, 17)), ("coco_zsl_48_17", (48, 0)), ("coco_gzsl_48_17", (0, 17))):
        with pytest.raises(ValueError, match=rf"{name} needs 48 seen and 17 unseen words, the dataset has {counts[0]}"):
            PROTOCOLS[name].check(vocabulary(*counts))
    with pytest.raises(ValueError, match="protocol seen needs seen words, the dataset has 0 seen and 5 unseen"):
        PROTOCOLS["seen"].check(vocabulary(0, 5))


def test_word_lists_of_protocols_are_there_and_fit():
    from zsmld.datasets import read_partition
    from zsmld.resources import resource_path

    with_words = [protocol for protocol in PROTOCOLS.values() if protocol.words_file]
    assert len(with_words) == 16
    for protocol in with_words:
        path = resource_path("data", *protocol.words_file.split("/"))
        if path.suffix == ".txt":
            words = Vocabulary(path.read_text(encoding="utf-8").splitlines())
        else:
            seen, unseen = read_partition(path)
            words = Vocabulary([*seen, *unseen], seen=seen)
        protocol.check(words)


def test_naming_a_policy_changes_that_policy_alone():
    changed = {"keep_unlabelled": False, "empty_words": "skip", "average_precision": "legacy", "top_k": (1, 3)}
    default = Protocol.named("gzsl")
    for policy, value in changed.items():
        protocol = Protocol.named("gzsl", **{policy: value})
        assert protocol.policies() == default.policies() | {policy: value}
        assert dataclasses.replace(protocol, **{policy: getattr(default, policy)}) == default
    assert PROTOCOLS["gzsl"] == default


def test_a_protocol_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Protocol.named("zsl").keep_unlabelled = False


# ------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"protocol must be .*, got 'nuswide_gzsl'; did you mean .*'nus_wide_gzsl'"):
        Protocol.named("nuswide_gzsl")
    with pytest.raises(ValueError, match=r"got 'qqq'; did you mean one of .*'supervised'"):
        Protocol.named("qqq")


@pytest.mark.parametrize(
    "policy, message",
    [
        (
            {"task": "few-shot"},
            r"task must be one of \['zsl', 'gzsl', 'seen', 'supervised', 'single_label'\], got 'few-shot'",
        ),
        ({"empty_words": "one"}, r"empty_words must be one of \['zero', 'skip'\], got 'one'"),
        ({"threshold": 1.5}, r"threshold must be a score in \[0, 1\], got 1.5"),
        ({"average_precision": "area"}, r"average_precision must be one of \[.*'legacy'.*\], got 'area'"),
        ({"top_k": ()}, r"top_k must be positive numbers, got \(\); write for instance \(3, 5\)"),
        ({"top_k": (3, 0)}, r"top_k must be positive numbers, got \(3, 0\)"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        Protocol.named("zsl", **policy)


def test_another_partition_is_refused():
    with pytest.raises(ValueError, match=r"nus_wide_zsl needs 925 seen and 81 unseen words, the dataset has 3 and 2"):
        PROTOCOLS["nus_wide_zsl"].ranked_labels("zsl", vocabulary(3, 2))


@pytest.mark.parametrize("counts", [(5, 0), (0, 5)])
@pytest.mark.parametrize("part", ["zsl", "gzsl"])
def test_without_a_partition_there_is_no_zero_shot(counts, part):
    words = Vocabulary([f"word {i}" for i in range(5)], seen=None if counts[0] else [])
    message = rf"gzsl needs seen and unseen words, the dataset has {counts[0]} seen and {counts[1]} unseen; .*'superv"
    with pytest.raises(ValueError, match=message):
        PROTOCOLS["gzsl"].ranked_labels(part, words)
    assert len(PROTOCOLS["supervised"].ranked_labels("supervised", words)) == 5

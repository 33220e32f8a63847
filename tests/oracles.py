"""Slow, obvious reference implementations. Loops and scalars only, so that each can be read against its definition."""

import itertools
import math

import numpy as np

# ------------------------------------------------------------------------------------------------------- the head


def word_head(decoder, spatial_embeddings, word_embeddings) -> tuple[np.ndarray, np.ndarray]:
    """The head of word mode in eval mode: logits (B,N) and the last layer's attention (B,H,N,S), all in fp64.

    Reads the module's parameters by name and runs none of its code: DESIGN section 4, one image, word, head and
    position at a time.
    """
    p = {name: tensor.detach().double().numpy() for name, tensor in decoder.state_dict().items()}
    num_heads = decoder.config()["num_heads"]
    num_layers = decoder.config()["num_layers"]
    spatial, words = spatial_embeddings.double().numpy(), word_embeddings.double().numpy()
    logits = np.zeros((len(spatial), len(words)))
    weights = np.zeros((len(spatial), num_heads, len(words), spatial.shape[1]))
    for b in range(len(spatial)):
        memory = [_relu(_linear(p, "spatial_proj", position)) for position in spatial[b]]
        for n in range(len(words)):
            standardized = (words[n] - p["word_mean"]) / p["word_scale"]
            t = _relu(_linear(p, "word_proj", standardized))
            for i in range(num_layers):
                layer = f"layers.{i}."
                t = _layer_norm(p, layer + "norm1", t + t)  # dropout of the query is the query itself in eval mode
                attended, weights[b, :, n] = _attend(p, layer, num_heads, t, memory)
                if decoder.output == "cosine" and i == num_layers - 1:
                    continue  # nothing after the last attention reaches the cosine
                t = _layer_norm(p, layer + "norm2", t + attended)
                hidden = _relu(_linear(p, layer + "linear1", t))
                t = _layer_norm(p, layer + "norm3", t + _linear(p, layer + "linear2", hidden))
            if decoder.output in ("shared", "sum"):
                logits[b, n] += _dot(p["shared_fc.weight"][0], t) + p["shared_fc.bias"][0]
            if decoder.output in ("cosine", "sum"):
                looked_at = _linear(p, "cosine_proj", attended)
                lengths = math.sqrt(_dot(looked_at, looked_at)) * math.sqrt(_dot(standardized, standardized))
                cosine = _dot(looked_at, standardized) / lengths
                logits[b, n] += math.exp(p["log_temperature"]) * cosine + p["cosine_bias"]
    return logits, weights


def _attend(p, layer, num_heads, t, memory) -> tuple[np.ndarray, np.ndarray]:
    query = _linear(p, layer + "query_proj", t)
    keys = [_linear(p, layer + "key_proj", position) for position in memory]
    values = [_linear(p, layer + "value_proj", position) for position in memory]
    width = len(query) // num_heads
    result, weights = np.zeros(len(query)), np.zeros((num_heads, len(memory)))
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        powers = [math.exp(_dot(query[part], key[part]) / math.sqrt(width)) for key in keys]
        for s in range(len(memory)):
            weights[head, s] = powers[s] / sum(powers)
            result[part] += weights[head, s] * values[s][part]
    return _linear(p, layer + "out_proj", result), weights


def _dot(a, b) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def _linear(p, name, x) -> np.ndarray:
    return np.array([_dot(row, x) + bias for row, bias in zip(p[f"{name}.weight"], p[f"{name}.bias"], strict=True)])


def _relu(x) -> np.ndarray:
    return np.array([max(value, 0.0) for value in x])


def _layer_norm(p, name, x) -> np.ndarray:
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return (x - mean) / math.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


# -------------------------------------------------------------------------------------------------------- metrics


def average_precision(scores, present) -> float:
    """One word: precision at each distinct threshold times the recall gained there. Needs a positive."""
    positives = sum(bool(p) for p in present)
    area = recall_before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        retrieved = [bool(p) for score, p in zip(scores, present, strict=True) if score >= threshold]
        recall = sum(retrieved) / positives
        area += (recall - recall_before) * sum(retrieved) / len(retrieved)
        recall_before = recall
    return area


def legacy_average_precision(scores, present) -> float:
    """One word: the loop of the official ML-Decoder function, with a sort that is stable and then reversed."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])[::-1]
    hits, total = 0, 0.0
    for rank, i in enumerate(order, 1):
        if present[i]:
            hits += 1
            total += hits / rank
    return total / (hits + 1e-8)


def precision_recall_f1_at_k(scores, targets, k) -> tuple[float, float, float]:
    """Every image is given its K best words; an unknown entry is never given, and ties go to the first label."""
    hits = positives = 0
    for row_scores, row_targets in zip(scores, targets, strict=True):
        known = [j for j in range(len(row_scores)) if row_targets[j] != -1]
        given = sorted(known, key=lambda j: (-row_scores[j], j))[:k]
        hits += sum(1 for j in given if row_targets[j] == 1)
        positives += sum(1 for target in row_targets if target == 1)
    precision = hits / (len(scores) * k)
    recall = hits / positives if positives else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def chance(targets) -> list[float]:
    """For each word the share of known images that have it; zero if none is known."""
    result = []
    for word in range(len(targets[0])):
        known = [row[word] for row in targets if row[word] != -1]
        result.append(sum(1 for target in known if target == 1) / len(known) if known else 0.0)
    return result


def integral_average_precision(scores, present) -> float:
    """One word: PaddleClas's "integral", precision at each rank times the recall gained, if more than 1e-6."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])[::-1]
    positives = sum(bool(p) for p in present)
    hits, area, recall_before = 0, 0.0, 0.0
    for rank, i in enumerate(order, 1):
        hits += bool(present[i])
        gained = hits / positives - recall_before
        if gained > 1e-6:
            area += hits / rank * gained
            recall_before = hits / positives
    return area


def eleven_point_average_precision(scores, present) -> float:
    """One word: the mean, over recalls 0, 0.1, …, 1, of the best precision at a rank with that recall or more."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])[::-1]
    positives = sum(bool(p) for p in present)
    hits, points = 0, []
    for rank, i in enumerate(order, 1):
        hits += bool(present[i])
        points.append((hits / positives, hits / rank))
    return sum(max(precision for recall, precision in points if recall >= j / 10) for j in range(11)) / 11


def best_words(scores, targets, k) -> list[int]:
    """One image: its K best known words, best first, ties to the first label."""
    known = [j for j in range(len(scores)) if targets[j] != -1]
    return sorted(known, key=lambda j: (-scores[j], j))[:k]


def per_class_figures(given, targets, empty_words) -> tuple[float, float, float]:
    """Mean precision and mean recall over words, and their harmonic mean; `given` has a list of labels an image."""
    precisions, recalls = [], []
    for j in range(len(targets[0])):
        times = sum(1 for labels in given if j in labels)
        hits = sum(1 for labels, row in zip(given, targets, strict=True) if j in labels and row[j] == 1)
        positives = sum(1 for row in targets if row[j] == 1)
        if positives or empty_words == "zero":
            precisions.append(hits / times if hits else 0.0)
            recalls.append(hits / positives if hits else 0.0)
    precision = sum(precisions) / len(precisions) if precisions else 0.0
    recall = sum(recalls) / len(recalls) if recalls else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision and recall else 0.0


def overall_figures(given, targets) -> tuple[float, float, float]:
    """Precision, recall and F1 of all words together; `given` has a list of labels an image."""
    times = sum(len(labels) for labels in given)
    hits = sum(1 for labels, row in zip(given, targets, strict=True) for j in labels if row[j] == 1)
    positives = sum(1 for row in targets for target in row if target == 1)
    precision, recall = hits / times if times else 0.0, hits / positives if positives else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def ranking_figures(scores, targets) -> dict[str, float]:
    """Means over images of ranking loss, coverage, one-error and label-ranking average precision."""
    totals = dict.fromkeys(("ranking_loss", "coverage_error", "one_error", "label_ranking_average_precision"), 0.0)
    for s, t in zip(scores, targets, strict=True):
        present = [j for j in range(len(s)) if t[j] == 1]
        absent = [j for j in range(len(s)) if t[j] == 0]
        wrong = sum(1 for i in present for j in absent if s[j] >= s[i])
        totals["ranking_loss"] += wrong / (len(present) * len(absent)) if present and absent else 0.0
        totals["coverage_error"] += max((sum(1 for j in present + absent if s[j] >= s[i]) for i in present), default=0)
        best = best_words(s, t, 1)
        totals["one_error"] += not best or t[best[0]] != 1
        precisions = [
            sum(1 for j in present if s[j] >= s[i]) / sum(1 for j in present + absent if s[j] >= s[i]) for i in present
        ]
        totals["label_ranking_average_precision"] += sum(precisions) / len(precisions) if present and absent else 1.0
    return {name: total / len(scores) for name, total in totals.items()}


def seen_unseen_recall_at_k(scores, targets, is_seen, k, constant) -> tuple[float, float]:
    """Recall of seen and of unseen labels in the joint best K, after adding a constant to the unseen scores."""
    hits, positives = [0, 0], [0, 0]
    for s, t in zip(scores, targets, strict=True):
        moved = [value if seen else value + constant for value, seen in zip(s, is_seen, strict=True)]
        for side in (0, 1):
            positives[side] += sum(1 for j in range(len(s)) if t[j] == 1 and is_seen[j] == (side == 0))
            hits[side] += sum(1 for j in best_words(moved, t, k) if t[j] == 1 and is_seen[j] == (side == 0))
    return tuple(hit / total if total else 0.0 for hit, total in zip(hits, positives, strict=True))


def seen_unseen_curve(scores, targets, is_seen, k) -> tuple[list[tuple[float, float]], float]:
    """(seen, unseen) recalls before, between and after all constants at which anything can change, and the area."""
    differences = {
        a - b
        for s in scores
        for a, p in zip(s, is_seen, strict=True)
        if p
        for b, q in zip(s, is_seen, strict=True)
        if not q
    }
    changes = sorted(value for value in differences if math.isfinite(value))
    constants = [(a + b) / 2 for a, b in itertools.pairwise(changes)]
    constants = [changes[0] - 1, *constants, changes[-1] + 1] if changes else [0.0]
    points = []
    for constant in constants:
        point = seen_unseen_recall_at_k(scores, targets, is_seen, k, constant)
        if not points or points[-1] != point:
            points.append(point)
    area = sum((b[1] - a[1]) * (a[0] + b[0]) / 2 for a, b in itertools.pairwise(points))
    return points, area


# --------------------------------------------------------------------------------------------------------- losses


def asymmetric_loss(logits, targets, gamma_neg=4.0, gamma_pos=0.0, clip=0.05) -> float:
    """Sum over known entries, equations 1 to 6 of arXiv 2009.14119: L+ = (1−p)^γ+ log p, L− = p_m^γ− log(1−p_m)."""
    total = 0.0
    for row_logits, row_targets in zip(logits, targets, strict=True):
        for logit, target in zip(row_logits, row_targets, strict=True):
            if target == -1:
                continue
            p = 1 / (1 + math.exp(-logit))
            if target == 1:
                total -= (1 - p) ** gamma_pos * math.log(max(p, 1e-8))
            else:
                shifted = max(p - clip, 0.0)
                total -= shifted**gamma_neg * math.log(max(1 - shifted, 1e-8))
    return total


def two_way_loss(logits, targets, temperature_pos=4.0, temperature_neg=1.0) -> float:
    """Kobayashi, CVPR 2023: the official mean over images and over words, times the images with something present."""
    rows = [list(zip(*row, strict=True)) for row in zip(logits, targets, strict=True)]  # (logit, target) by image
    columns = [list(column) for column in zip(*rows, strict=True)]  # and by word
    costs = []
    for groups in (rows, columns):
        present = [group for group in groups if any(target == 1 for _, target in group)]
        total = sum(_two_way_cost(group, temperature_pos, temperature_neg) for group in present)
        costs.append(total / len(present) if present else 0.0)
    return sum(costs) * sum(1 for row in rows if any(target == 1 for _, target in row))


def _two_way_cost(group, temperature_pos, temperature_neg) -> float:
    """log(1 + (Σ exp(x⁻/T⁻))^T⁻ · (Σ exp(−x⁺/T⁺))^T⁺) of one row or column."""
    absent = sum(math.exp(logit / temperature_neg) for logit, target in group if target == 0)
    present = sum(math.exp(-logit / temperature_pos) for logit, target in group if target == 1)
    return math.log(1 + absent**temperature_neg * present**temperature_pos)


def ranking_loss(logits, targets, margin=1.0, normalize_by="pairs") -> float:
    """Sum over images of Σ max(0, margin + x⁻ − x⁺) over pairs, divided by the pairs or by those above 0."""
    total = 0.0
    for row_logits, row_targets in zip(logits, targets, strict=True):
        hinges = [
            max(0.0, margin + absent - present)
            for present, is_present in zip(row_logits, row_targets, strict=True)
            if is_present == 1
            for absent, is_absent in zip(row_logits, row_targets, strict=True)
            if is_absent == 0
        ]
        divisor = len(hinges) if normalize_by == "pairs" else sum(1 for hinge in hinges if hinge > 0)
        total += sum(hinges) / divisor if divisor else 0.0
    return total

"""A thousand sets of labels and of confidences, and what scikit-learn and cleanlab say about them."""

import random
import warnings

import numpy
from cleanlab.filter import find_label_issues
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, classification_report, confusion_matrix, log_loss

import compact

SETS = 1000
# Each label is one character, so that a set is two short texts.
ALPHABETS = ["ab", "abc", "abcd", "zyxw", "Aaé", "กขค", "是否", "👍👎"]


def report(labels, truth, predicted):
    """Accuracy, then precision, recall, F1 and support of each label, macro and weighted means."""
    options = dict(labels=labels, output_dict=True, zero_division=0)
    scores = classification_report(list(truth), list(predicted), **options)
    accuracy = sum(a == b for a, b in zip(truth, predicted)) / len(truth)
    if "accuracy" in scores:
        assert abs(scores["accuracy"] - accuracy) < 1e-12
    names = [*(labels or sorted({*truth, *predicted})), "macro avg", "weighted avg"]
    keys = ["precision", "recall", "f1-score"]
    rows = [[scores[name][key] for key in keys] for name in names]
    support = [int(scores[name]["support"]) for name in names[:-2]]
    return [compact.number(accuracy), [[compact.number(value) for value in row] for row in rows], support]


def label_sets():
    rng = random.Random(1)
    for index in range(SETS):
        alphabet = rng.choice(ALPHABETS)
        rows = rng.choice([1, 2, 3, 5, 8, 12, 20])
        right = rng.random()
        truth = "".join(rng.choice(alphabet) for _ in range(rows))
        predicted = "".join(t if rng.random() < right else rng.choice(alphabet) for t in truth)
        labels = None
        if index % 5 == 0:  # labels given: some of those that occur, in an order of their own
            labels = rng.sample(alphabet, rng.randint(1, len(alphabet)))
            if not {*labels} & {*truth}:
                labels = [truth[0]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = confusion_matrix(list(truth), list(predicted), labels=labels).tolist()
            yield [truth, predicted, labels, report(labels, truth, predicted), table]


def calibration(confidences, right, bins):
    """Expected calibration error, from the curve and the sizes of its bins."""
    accuracy, confidence = calibration_curve(right, confidences, n_bins=bins, strategy="uniform")
    places = numpy.searchsorted(numpy.linspace(0, 1, bins + 1)[1:-1], confidences)
    sizes = numpy.bincount(places, minlength=bins)
    return float(numpy.sum(sizes[sizes > 0] * numpy.abs(accuracy - confidence)) / len(right))


def confidence_sets():
    """Confidences in per cent or tenths of them, whether right, the number of bins; the errors."""
    rng = random.Random(2)
    for _ in range(SETS):
        rows, bins = rng.choice([2, 3, 5, 10, 20]), rng.choice([1, 5, 10, 15])
        scale = rng.choice([10, 100, 1000])
        whole = [rng.randint(0, scale) for _ in range(rows)]
        confidences = numpy.array([value / scale for value in whole])
        right = numpy.array([int(rng.random() < 0.2 + 0.6 * value) for value in confidences])
        brier = brier_score_loss(right, confidences, pos_label=1)
        loss = log_loss(right, numpy.stack([1 - confidences, confidences], 1), labels=[0, 1])
        errors = [calibration(confidences, right, bins), brier, loss]
        yield [scale, whole, "".join(map(str, right)), bins, [compact.number(error) for error in errors]]


def probability_sets():
    """Probabilities in hundredths over three to five classes, the true classes; Brier score and log loss."""
    rng = random.Random(3)
    for _ in range(200):
        classes, rows = rng.randint(3, 5), rng.randint(1, 6)
        cuts = [sorted(rng.randint(0, 100) for _ in range(classes - 1)) for _ in range(rows)]
        hundredths = [[b - a for a, b in zip([0, *cut], [*cut, 100])] for cut in cuts]
        truth = [rng.randrange(classes) for _ in range(rows)]
        probabilities = numpy.array(hundredths) / 100
        labels = list(range(classes))
        brier = brier_score_loss(truth, probabilities, labels=labels, scale_by_half=False)
        loss = log_loss(truth, probabilities, labels=labels)
        yield [hundredths, truth, compact.number(brier), compact.number(loss)]


def label_issue_sets():
    """Probabilities in hundredths, the given classes; the rows whose class is wrong, least likely first."""
    rng = random.Random(4)
    for _ in range(SETS):
        classes, rows = rng.randint(2, 5), rng.randint(6, 30)
        wrong, sharp = rng.choice([0.0, 0.1, 0.3]), rng.choice([1, 3, 8])
        hundredths, given = [], []
        for _ in range(rows):
            true = rng.randrange(classes)
            weights = [rng.random() + (sharp * rng.random() if label == true else 0) for label in range(classes)]
            whole = [int(100 * weight / sum(weights)) for weight in weights]
            whole[true] += 100 - sum(whole)
            hundredths.append(whole)
            given.append(rng.randrange(classes) if rng.random() < wrong else true)
        given[:classes] = range(classes)  # each class has a row
        options = dict(filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = find_label_issues(numpy.array(given), numpy.array(hundredths) / 100, **options)
        yield [hundredths, given, sorted(map(int, found)), [hundredths[row][given[row]] for row in found]]


def write():
    compact.write("label_issues.json", list(label_issue_sets()))
    compact.write("classes.json", list(label_sets()))
    compact.write("calibration.json", {"confidences": list(confidence_sets()), "probabilities": list(probability_sets())})

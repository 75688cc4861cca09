"""squad_v2: answers to questions on a text, against the nearest of the right ones, in percent.

As SQuAD 2.0 defines it (arXiv 1806.03822): case, punctuation, articles and spaces do not count;
a question without a right answer wants an empty one.
"""

import collections
import re
import string

import datasets
import evaluate

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text):
    """Return the words of an answer that count."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def overlap(words, right):
    """Return the F1 of the words of an answer."""
    if not words or not right:
        return float(words == right)
    shared = sum((collections.Counter(words) & collections.Counter(right)).values())
    return 2 * shared / (len(words) + len(right))


class SquadV2(evaluate.Metric):
    """Over predictions and references with the same ids."""

    def _info(self):
        answers = {"text": datasets.Value("string"), "answer_start": datasets.Value("int32")}
        features = datasets.Features(
            {
                "predictions": {
                    "id": datasets.Value("string"),
                    "prediction_text": datasets.Value("string"),
                    "no_answer_probability": datasets.Value("float32"),
                },
                "references": {
                    "id": datasets.Value("string"),
                    "answers": datasets.features.Sequence(answers),
                },
            }
        )
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references):
        exact, f1 = [], []
        for prediction, reference in zip(predictions, references, strict=True):
            answer = plain(prediction["prediction_text"])
            rights = [words for text in reference["answers"]["text"] if (words := plain(text))]
            exact.append(max(float(answer == right) for right in rights or [[]]))
            f1.append(max(overlap(answer, right) for right in rights or [[]]))
        return {"exact": 100 * sum(exact) / len(exact), "f1": 100 * sum(f1) / len(f1)}

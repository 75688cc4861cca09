"""seqeval: F1 of whole entities in tagged sentences, all kinds counted together."""

import datasets
import evaluate
from seqeval.metrics import f1_score


class SeqEval(evaluate.Metric):
    """Over lists of tags like B-PER, one list a sentence."""

    def _info(self):
        tags = datasets.Sequence(datasets.Value("string"))
        features = datasets.Features({"predictions": tags, "references": tags})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references):
        return {"overall_f1": float(f1_score(references, predictions, zero_division=0))}

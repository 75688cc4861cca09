"""f1: the mean over precision and recall, averaged over labels as it is asked."""

import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
    """Over integers, as EuroEval numbers its labels."""

    def _info(self):
        features = datasets.Features(
            {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        )
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references, average="binary", labels=None, pos_label=1):
        score = f1_score(
            references, predictions, average=average, labels=labels, pos_label=pos_label
        )
        return {"f1": float(score) if average is not None else score.tolist()}

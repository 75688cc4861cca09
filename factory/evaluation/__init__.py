"""Arena answers, judges, statistics of verdicts and EuroEval."""

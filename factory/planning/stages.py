"""Registry of stages, in the order of the line. A new stage is one file and one name below."""

from __future__ import annotations

from factory.evaluation.arena import Arena
from factory.evaluation.euroeval.stage import Euroeval
from factory.evaluation.judging.stage import Judge
from factory.pairs.pair import Best, Pair
from factory.rewards.score import Score
from factory.rewards.transfer import Transfer
from factory.sampling.dedup import Dedup
from factory.sampling.generate import Generate
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.sampling.translate import Translate, TranslatePairs
from factory.stage.stage import Stage
from factory.training.merge import Merge
from factory.training.train import Dpo, Online, Reward, Rl, Sft

STAGES: tuple[type[Stage], ...] = (
    Prompts,
    Translate,
    Preferences,
    Questions,
    Reward,
    Transfer,
    Generate,
    Dedup,
    Score,
    Pair,
    Best,
    TranslatePairs,
    Sft,
    Dpo,
    Online,
    Rl,
    Merge,
    Euroeval,
    Arena,
    Judge,
)

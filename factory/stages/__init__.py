"""The stages, in the order of the line. A new one is a file here and its name below."""

from __future__ import annotations

from factory.stages.arena import Arena
from factory.stages.contract import Stage
from factory.stages.euroeval import Euroeval
from factory.stages.generate import Generate
from factory.stages.judge import Judge
from factory.stages.merge import Merge
from factory.stages.pair import Best, Pair
from factory.stages.score import Score
from factory.stages.sources import Preferences, Prompts, Questions
from factory.stages.train import Dpo, Online, Reward, Sft
from factory.stages.transfer import Transfer
from factory.stages.translate import Translate

STAGES: tuple[type[Stage], ...] = (
    Prompts,
    Translate,
    Preferences,
    Questions,
    Reward,
    Transfer,
    Generate,
    Score,
    Pair,
    Best,
    Sft,
    Dpo,
    Online,
    Merge,
    Euroeval,
    Arena,
    Judge,
)

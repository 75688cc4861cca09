"""Rewards of answers and pairs: all that are open for a step, the prompts of a slice, figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from factory.artifacts.hashing import text_hash
from factory.engines.chat_template import Message
from factory.errors import InputError
from factory.rewards.backends.backend import Backend, OpenReward, RewardValue
from factory.rewards.backends.generative import REFERENCE_ROLE
from factory.rewards.backends.implicit import crosslingual
from factory.stage.inputs import SliceSpec
from factory.stage.job import Job
from factory.stage.preference_pairs import SIDES

LabelledPair = tuple[list[Message], str, str]  # prompt, chosen, rejected
ReadUnder = tuple[list[Message] | None, str | None]  # prompt, and its hash if another language's


class OpenRewards:
    """All rewards of a step, each with its kind, on engines that are open together; `likelihood`
    beside them says how likely a model finds an answer."""

    def __init__(
        self, each: Sequence[tuple[Backend, OpenReward]], likelihood: OpenReward | None = None
    ) -> None:
        self.each, self.likelihood = each, likelihood
        self._every = [opened for _, opened in each] + ([likelihood] if likelihood else [])
        self.name = ", ".join(dict.fromkeys(opened.name for opened in self._every))
        self.lanes = min(opened.lanes for opened in self._every)

    @property
    def tokens(self) -> int:
        """Tokens read by all so far."""
        return sum(opened.tokens for opened in self._every)

    def close(self) -> None:
        """Close the engines of all."""
        for opened in self._every:
            opened.close()


def read(
    opened: OpenReward,
    read_under: Sequence[ReadUnder],
    rows: Sequence[dict[str, Any]],
    reason: str,
) -> list[RewardValue]:
    """Return what one reward says of each sample under its prompt; `reason` where it has none."""
    # Answers to one prompt one after another, wherever they stand: an engine that keeps
    # prefixes reads the prompt once.
    met: dict[str, int] = {}
    order = [number for number, (prompt, _) in enumerate(read_under) if prompt is not None]
    order.sort(key=lambda number: met.setdefault(rows[number]["prompt_hash"], len(met)))
    items = [(read_under[number][0] or [], rows[number]["response"]) for number in order]
    values = dict(zip(order, opened.reward(items), strict=True))
    absent = RewardValue(None, 0, reason)
    return [values.get(number, absent) for number in range(len(rows))]


def score_pairs(open_rewards: OpenRewards, pairs: Sequence[LabelledPair]) -> tuple[pa.Table, int]:
    """Return the rewards of the chosen and the rejected answer of each pair, under the pair's own
    prompt (a list of those of several rewards), and the tokens read."""
    # both answers to a prompt one after another: an engine that keeps prefixes reads it once
    items = [(prompt, text) for prompt, *texts in pairs for text in texts]
    each = [opened.reward(items) for _, opened in open_rewards.each]
    rewards: list[Any] = [value.value for value in each[0]]
    kind = pa.float64()
    if len(each) > 1:
        rewards = [[value.value for value in values] for values in zip(*each, strict=True)]
        kind = pa.list_(kind)
    sides = (pa.array(rewards[::2], kind), pa.array(rewards[1::2], kind))
    table = pa.table(dict(zip(SIDES, sides, strict=True)))
    return table, sum(value.n_tokens for values in each for value in values)


@dataclass(frozen=True)
class PromptTexts:
    """The prompts of a slice: `own` by id and hash, and `english` by id where answers are read
    under those, with the hash of what is read."""

    language: str
    own: dict[tuple[str, str], list[Message]]
    english: dict[str, tuple[list[Message], str]] | None
    gold: dict[str, str]  # by id

    @classmethod
    def of(cls, job: Job, spec: SliceSpec) -> PromptTexts:
        """Read the prompts of a job's slice."""
        rows = job.table(spec, "prompts", "prompts").to_pylist()
        own = {(row["prompt_id"], row["prompt_hash"]): row["messages"] for row in rows}
        gold = {row["prompt_id"]: row["gold"] for row in rows if row.get("gold")}
        if spec.need("english") is None:
            return cls(str(spec.language), own, None, gold)
        english = {
            row["prompt_id"]: (row["messages"], row["prompt_hash"])
            for row in job.table(spec, "english", "prompts").to_pylist()
        }
        return cls(str(spec.language), own, english, gold)

    def prompt_of(self, sample: dict[str, Any], english: bool, reference: bool) -> ReadUnder:
        """Return the prompt that a sample is read under, the English one or its own, with its
        reference if asked for (None if there is none), and the hash of what is no own prompt of
        it. Raises InputError for a sample of another prompt than ours."""
        address = (sample["prompt_id"], sample["prompt_hash"])
        if address not in self.own:
            raise InputError(
                f"sample {sample['prompt_id']} k={sample['k']} answers another prompt",
                "samples and prompts are of different versions: generate again",
            )
        if reference:
            gold = self.gold.get(sample["prompt_id"])
            if gold is None:
                return None, None
            last: Message = {"role": REFERENCE_ROLE, "content": gold}
            return [*self.own[address], last], text_hash(gold)
        if self.english is None or not english:
            return self.own[address], None
        if sample["prompt_id"] not in self.english:
            return None, None
        messages, hashed = self.english[sample["prompt_id"]]
        return crosslingual(messages, self.language), hashed


def describe(table: pa.Table) -> dict[str, Any]:
    """Return counts, moments and a histogram of one language's rewards."""
    import numpy as np
    import polars as pl

    from factory.pairs.statistics import histogram

    values = table.column("reward").drop_null().to_numpy()
    statuses = table.column("status").to_pylist()
    return {
        "scored": len(values),
        "without_reward": sum(status != "ok" for status in statuses),
        "reasons": dict(sorted(Counter(s for s in statuses if s != "ok").items())),
        "tokens": sum(table.column("n_tokens").to_pylist()),
        "rewards": histogram({"reward": pl.Series(values)}),
        **({"mean": float(np.mean(values)), "std": float(np.std(values))} if len(values) else {}),
    }

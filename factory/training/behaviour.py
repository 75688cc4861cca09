"""Behaviour probe: what a tuned model draws beside its base, and what it has forgotten.

Greedy answers show little of what a training does to a model. At a temperature of 1, a model that
was trained too hard draws worse answers than its base while its greedy ones are as good as ever.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.engines import Completion, Sampling, chat_template, choose
from factory.engines.chat_template import Message
from factory.engines.choose import EngineKnobs, Name
from factory.language.detect import detect, differs, matches
from factory.stage.proportions import fell
from factory.training import adapters
from factory.training.settings import ProbeKnobs

_GRAM = 4  # tokens: a run of them that comes twice in one answer is a repetition
# Changes that are alarms; choices, not findings of a paper.
_REPEATS = 0.2  # more of an answer's runs are repetitions than in the base's answers
_FORGOTTEN = 1.0  # nats a token by which the base's own answers became less likely
_STRANGE = (
    1.0  # nats a token by which the tuned model's answers are likelier to it than to the base
)


@dataclass(frozen=True)
class Question:
    """A prompt to draw answers to, the language it is in (None if unknown), and whether it was held
    out of the training."""

    prompt: Sequence[Message]
    language: str | None
    held_out: bool


def probe(
    base: Path,
    adapter: Path,
    questions: Sequence[Question],
    knobs: ProbeKnobs,
    dtype: str,
    seed: int,
    engine: Name = "auto",
    reward: Path | None = None,
) -> dict[str, Any] | None:
    """Draw answers to some prompts with the base and with the adapter on it, and describe them.

    Held-out prompts come first, each prompt once. `reward`: a classifier that reads the answers.
    Returns None where no prompt leaves room for an answer. Shares are from 0 to 1, lengths in
    tokens, log-probabilities in nats a token.
    """
    drawn = draw(base, {"tuned": adapter, "base": None}, questions, knobs, dtype, seed, engine)
    if drawn is None:
        return None
    repeated = drawn.questions
    figures: dict[str, Any] = {
        "prompts": len(repeated) // knobs.n,
        "held_out": sum(question.held_out for question in repeated) // knobs.n,
        "n": knobs.n,
        "temperature": knobs.temperature_or_default,
        "max_tokens": knobs.max_tokens,
        **{name: drawn.describe(name) for name in ("base", "tuned")},
    }
    if reward is not None:
        read = rewards(drawn, reward, dtype, engine)
        for name in ("base", "tuned"):
            figures[name] |= _moments(read[name])
    return figures | _likelihoods(base, adapter, dtype, drawn)


@dataclass(frozen=True)
class Drawn:
    """Answers of several models to the same questions, each as often as it was answered."""

    questions: Sequence[Question]
    prompts: Sequence[list[int]]
    answers: Mapping[str, list[Completion]]
    texts: Mapping[str, list[str]]

    def describe(self, name: str) -> dict[str, Any]:
        """Return the counts and means of the answers of one model."""
        return describe(self.answers[name], self.texts[name], self.questions)


def draw(
    base: Path,
    adapters: Mapping[str, Path | None],
    questions: Sequence[Question],
    knobs: ProbeKnobs,
    dtype: str,
    seed: int,
    engine: Name = "auto",
) -> Drawn | None:
    """Draw answers to some prompts, each once, with every adapter on the base; None is the base
    itself. Returns None where no prompt leaves room for an answer."""
    unique = list({repr(q.prompt): q for q in questions}.values())
    sampling = Sampling(knobs.temperature_or_default, 1.0, knobs.max_tokens)
    first, *more_adapters = [path for path in adapters.values() if path is not None]
    sampler = choose.sampler(
        EngineKnobs(engine=engine), base, base.name, dtype, first, more_adapters
    )
    try:
        tokenizer = sampler.tokenizer
        prompts = [chat_template.prompt_ids(tokenizer, question.prompt) for question in unique]
        fits = [n for n, ids in enumerate(prompts) if sampling.room(len(ids), sampler.max_context)]
        chosen = [n for n in fits[: knobs.prompts] for _ in range(knobs.n)]
        if not chosen:
            return None
        prompts = [prompts[n] for n in chosen]
        answers = {}
        for name, path in adapters.items():
            sampler.set_adapter(path)
            answers[name] = sampler.sample(prompts, sampling, seed)
    finally:
        sampler.close()
    texts = {
        name: [
            tokenizer.decode(list(answer.token_ids), skip_special_tokens=True).strip()
            for answer in drawn
        ]
        for name, drawn in answers.items()
    }
    return Drawn([unique[n] for n in chosen], prompts, answers, texts)


def rewards(drawn: Drawn, reward: Path, dtype: str, engine: Name) -> dict[str, list[float]]:
    """Return the rewards of all answers by the classifier in `reward`, by model."""
    scorer = choose.scorer(EngineKnobs(engine=engine), reward, dtype)
    try:
        return {
            name: scorer.score(
                [
                    chat_template.conversation_ids(
                        scorer.tokenizer, [*question.prompt, {"role": "assistant", "content": text}]
                    )[: scorer.max_context]
                    for question, text in zip(drawn.questions, texts, strict=True)
                ]
            )
            for name, texts in drawn.texts.items()
        }
    finally:
        scorer.close()


def best(
    drawn: Drawn, names: Sequence[str], knobs: ProbeKnobs, read: Mapping[str, list[float]] | None
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the best of some adapters, of equal ones the last, and figures of each.

    read: rewards by model, for the share of answers that win against the base's at the same place;
    a tie is half a win. Without them, the one with the fewest alarms is the best, of these the one
    with the most answers that end and are in the language of their prompt."""
    base = drawn.describe("base")
    figures: dict[str, dict[str, Any]] = {}
    order: dict[str, Any] = {}
    for name in names:
        tuned = drawn.describe(name)
        figures[name] = {key: tuned[key] for key in ("answers", "finished", "in_language")}
        if read is not None:
            pairs = list(zip(read[name], read["base"], strict=True))
            wins = sum(mine > theirs for mine, theirs in pairs)
            tied = sum(mine == theirs for mine, theirs in pairs)
            order[name] = figures[name]["win_rate"] = (wins + tied / 2) / len(pairs)
        else:
            at = {"base": base, "tuned": tuned, "temperature": knobs.temperature_or_default}
            figures[name]["alarms"] = len(alarms(at))
            order[name] = (-figures[name]["alarms"], tuned["finished"] + tuned["in_language"])
    return max(reversed(names), key=order.__getitem__), figures


def describe(
    answers: Sequence[Completion], texts: Sequence[str], questions: Sequence[Question]
) -> dict[str, Any]:
    """Return the counts and means of some answers, each to the question at its place.

    `finished` answers ended by themselves; `in_language` and `other_language` count those whose
    language can be told, where that of the prompt is known; `distinct` are the different texts;
    `repetition` is the mean share of an answer's runs of four tokens that it has had before.
    """
    labels = [
        (detect(text, question.language), question.language)
        for text, question in zip(texts, questions, strict=True)
        if question.language is not None
    ]
    repeats = [_repetition(answer.token_ids) for answer in answers]
    return {
        "answers": len(answers),
        "finished": sum(answer.finish_reason == "stop" for answer in answers),
        "empty": sum(not text for text in texts),
        "in_language": sum(matches(label, code) for label, code in labels),
        "other_language": sum(differs(label, code) for label, code in labels),
        "mean_tokens": sum(len(answer.token_ids) for answer in answers) / len(answers),
        "repetition": sum(repeats) / len(repeats),
        "distinct": len(set(texts)),
    }


def _repetition(tokens: Sequence[int]) -> float:
    runs = [tuple(tokens[at : at + _GRAM]) for at in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _moments(rewards: Sequence[float]) -> dict[str, float]:
    """Return the mean of these rewards, and the standard error of it."""
    mean = math.fsum(rewards) / len(rewards)
    variance = math.fsum((value - mean) ** 2 for value in rewards) / max(1, len(rewards) - 1)
    return {"reward": mean, "reward_error": math.sqrt(variance / len(rewards))}


def _likelihoods(
    base: Path,
    adapter: Path,
    dtype: str,
    drawn: Drawn,
) -> dict[str, Any]:
    """Return how likely each model finds the answers of either, in nats a token, and the two
    divergences that follow: of the base's own answers (what was forgotten) and of the tuned
    model's (how far it went)."""
    import torch

    model = adapters.load(base, adapter, dtype)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, Any] = {}
    for name, answers in drawn.answers.items():
        read = [
            ([*ids, *answer.token_ids], len(ids))
            for ids, answer in zip(drawn.prompts, answers, strict=True)
            if answer.token_ids
        ]
        tuned = adapters.mean_log_prob(model, read)
        with model.disable_adapter():
            untuned = adapters.mean_log_prob(model, read)
        if tuned is not None and untuned is not None:
            figures[f"log_prob_of_{name}"] = {"base": untuned, "tuned": tuned}
            figures["forgotten" if name == "base" else "moved"] = (
                untuned - tuned if name == "base" else tuned - untuned
            )
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return figures


def alarms(figures: dict[str, Any] | None) -> list[str]:
    """Return warnings about a tuned model, a line each: shares that fell by more than chance, and
    changes over a limit."""
    if figures is None:
        return []
    base, tuned = figures["base"], figures["tuned"]
    at = f"drawn at temperature {figures['temperature']:g}"
    messages = []

    def share(key: str, total: str, what: str) -> None:
        before, after = (
            (row[key], row[total] if total in row else row[key] + row["other_language"])
            for row in (base, tuned)
        )
        if all(count for _, count in (before, after)) and fell(before, after):
            messages.append(
                f"{what} fell from {before[0]} of {before[1]} (base) to {after[0]} of "
                f"{after[1]} {at}"
            )

    share("finished", "answers", "answers that end by themselves")
    share("in_language", "", "answers in the language of their prompt")
    share("distinct", "answers", "different answers")
    if tuned["empty"] > tuned["answers"] / 2 and base["empty"] <= base["answers"] / 2:
        messages.append(f"{tuned['empty']} of {tuned['answers']} answers are empty, {at}")
    if tuned["repetition"] > base["repetition"] + _REPEATS:
        messages.append(
            f"answers repeat themselves: {tuned['repetition']:.0%} of their runs of {_GRAM} tokens "
            f"came before, {base['repetition']:.0%} in the base's, {at}"
        )
    if figures.get("forgotten", 0.0) > _FORGOTTEN:
        messages.append(
            f"the base's own answers lost {figures['forgotten']:.2g} nats a token: much of the "
            "base is forgotten; lower the lr, or train for fewer steps"
        )
    if figures.get("moved", 0.0) > _STRANGE:
        messages.append(
            f"its own answers are {figures['moved']:.2g} nats a token likelier to it than to the "
            "base: it went far from the base; lower the lr, or raise beta"
        )
    if "reward" in tuned and "reward" in base:
        error = math.hypot(tuned["reward_error"], base["reward_error"])
        if tuned["reward"] < base["reward"] - 2 * error:
            messages.append(
                f"the mean reward fell from {base['reward']:.3g} (base) to {tuned['reward']:.3g} "
                f"{at}"
            )
    return messages

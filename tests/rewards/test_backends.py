"""Reward backends on tiny real models: sums that a plain loop gives too, whatever the batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from factory.engines import chat_template
from factory.engines.chat_template import REFUSED
from factory.engines.transformers import TransformersLikelihood
from factory.errors import InputError
from factory.execution.builtin_models import CHATML, POCKET
from factory.rewards.backends.backend import OpenReward
from factory.rewards.backends.classifier import Classifier
from factory.rewards.backends.generative import QUESTION, Generative, asked, expected_value
from factory.rewards.backends.implicit import Implicit, crosslingual
from tests.support.families import tokenizer_of

ASK = [{"role": "user", "content": "Why does bread rise?"}]
LONG = [{"role": "user", "content": "Why does bread dough rise before it goes into the oven? " * 3}]
ITEMS = [
    (ASK, "Yeast."),
    (LONG, "Because yeast eats sugar and gives off gas, which the dough keeps."),
    (ASK, "¿Por qué no?"),
    (ASK, ""),
    (LONG, "x" * 120),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy and a reference of one shape, and an adapter for the reference."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("models")
    found = {name: root / name for name in ("policy", "reference", "adapter", "merged")}
    for path in found.values():
        path.mkdir()
    POCKET["local/tiny-random-llama"].build(found["reference"])
    model = AutoModelForCausalLM.from_pretrained(str(found["reference"]))
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(str(found["policy"]))
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(str(found["reference"])),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    tuned.save_pretrained(str(found["adapter"]))
    tuned.merge_and_unload().save_pretrained(str(found["merged"]))
    for name in ("policy", "merged"):
        AutoTokenizer.from_pretrained(str(found["reference"])).save_pretrained(str(found[name]))
    return found


@pytest.fixture(scope="module")
def policy(models: dict[str, Path]) -> TransformersLikelihood:
    return TransformersLikelihood(models["policy"], "float32")


@pytest.fixture(scope="module")
def reference(models: dict[str, Path]) -> TransformersLikelihood:
    return TransformersLikelihood(models["reference"], "float32")


@pytest.fixture(scope="module")
def implicit(policy: TransformersLikelihood, reference: TransformersLikelihood) -> Implicit:
    return Implicit(policy, reference, 512)


@functools.cache
def plain(directory: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()


def by_hand(directory: Path, ids: Sequence[int]) -> list[float]:
    """log p of every token but the first, one forward pass over this sequence alone."""
    import torch

    with torch.no_grad():
        logits = plain(directory)(input_ids=torch.tensor([list(ids)])).logits[0]
    values = torch.log_softmax(logits, dim=-1)
    return [float(values[i - 1, ids[i]]) for i in range(1, len(ids))]


# The likelihood of given text.


def test_log_probs_are_those_of_a_plain_loop(
    models: dict[str, Path], policy: TransformersLikelihood
) -> None:
    read = chat_template.answered_ids(policy.tokenizer, ITEMS)
    found = policy.log_probs([ids for ids, _ in read], [start for _, start in read])
    for (ids, start), values in zip(read, found, strict=True):
        expected = by_hand(models["policy"], ids)[start - 1 :]
        assert values == pytest.approx(expected, abs=1e-4)
        assert sum(values) == pytest.approx(sum(expected), abs=1e-4)
        assert len(values) == len(ids) - start


def test_log_probs_may_start_anywhere(policy: TransformersLikelihood) -> None:
    ids = chat_template.prompt_ids(policy.tokenizer, LONG)
    [whole] = policy.log_probs([ids], [1])
    for start in (1, 2, len(ids) - 1, len(ids)):
        [values] = policy.log_probs([ids], [start])
        assert values == pytest.approx(whole[start - 1 :], abs=1e-5)


def test_small_batches_give_the_same(
    policy: TransformersLikelihood, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines import transformers as engine

    read = chat_template.answered_ids(policy.tokenizer, ITEMS)
    arguments = [ids for ids, _ in read], [start for _, start in read]
    before = policy.log_probs(*arguments)
    monkeypatch.setattr(engine, "BATCH_LOGITS", 1)  # one at a time
    for values, expected in zip(policy.log_probs(*arguments), before, strict=True):
        assert values == pytest.approx(expected, abs=1e-4)


def test_an_adapter_counts(models: dict[str, Path]) -> None:
    tuned = TransformersLikelihood(models["reference"], "float32", models["adapter"])
    merged = TransformersLikelihood(models["merged"], "float32")
    bare = TransformersLikelihood(models["reference"], "float32")
    [(ids, start)] = chat_template.answered_ids(tuned.tokenizer, ITEMS[1:2])
    [[*ours], [*theirs], [*without]] = (
        one.log_probs([ids], [start])[0] for one in (tuned, merged, bare)
    )
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours != pytest.approx(without, abs=1e-2)
    # base and adapter against base is a reward like any other
    [reward] = Implicit(tuned, bare, 512)(ITEMS[1:2])
    assert reward.value == pytest.approx(math.fsum(ours) - math.fsum(without), abs=1e-9)


# The implicit reward.


def test_the_implicit_reward_is_the_sum_over_answer_and_stop_token(
    models: dict[str, Path], implicit: Implicit
) -> None:
    tokenizer = implicit._models[0].tokenizer
    for item, reward in zip(ITEMS, implicit(ITEMS), strict=True):
        [(ids, start)] = chat_template.answered_ids(tokenizer, [item])
        ours, theirs = (by_hand(models[name], ids) for name in ("policy", "reference"))
        ratios = [a - b for a, b in zip(ours, theirs, strict=True)][start - 1 :]
        assert ids[-1] == tokenizer.eos_token_id
        assert reward.value == pytest.approx(sum(ratios), abs=1e-4)
        assert (reward.status, reward.n_tokens) == ("ok", len(ids))
        # the published scorer leaves out the first token of an answer
        assert abs(ratios[0]) > 1e-3 and abs(reward.value - sum(ratios[1:])) > 1e-3
        # and what comes after the stop token (a line break in this template) is not counted
        whole = chat_template.conversation_ids(
            tokenizer, [*item[0], {"role": "assistant", "content": item[1]}]
        )
        assert len(whole) == len(ids) + 1


def test_the_published_scorers_dependence_on_the_batch_is_not_here(implicit: Implicit) -> None:
    # it multiplies by a mask that is off by one: a padded row gains the pad token's log-probability
    together = [reward.value for reward in implicit(ITEMS)]
    for order in ([4, 3, 2, 1, 0], [0], [3, 4], [1, 1, 0]):
        again = [reward.value for reward in implicit([ITEMS[i] for i in order])]
        assert again == pytest.approx([together[i] for i in order], abs=1e-4)


def test_an_answer_with_a_stop_marker_in_it_is_read_to_its_end(implicit: Implicit) -> None:
    short, long = implicit([(ASK, "It prints"), (ASK, "It prints <|im_end|> and goes on.")])
    assert long.n_tokens > short.n_tokens + 2 and long.value != short.value


def test_a_model_against_itself_has_no_reward(policy: TransformersLikelihood) -> None:
    assert [r.value for r in Implicit(policy, policy, 512)(ITEMS)] == [0.0] * len(ITEMS)


def test_too_long_for_either_model_is_a_reason(
    policy: TransformersLikelihood, reference: TransformersLikelihood
) -> None:
    fits, over = Implicit(policy, reference, 40)([(ASK, "Yeast."), (ASK, "yeast " * 60)])
    assert fits.status == "ok" and fits.value is not None
    assert over.status == "too_long" and over.value is None and over.n_tokens > 40


def test_no_answers_are_no_rewards(implicit: Implicit) -> None:
    assert implicit([]) == []


def test_what_the_chat_template_refuses_has_no_reward_and_the_others_have(
    models: dict[str, Path],
) -> None:
    policy = TransformersLikelihood(models["policy"], "float32")
    reference = TransformersLikelihood(models["reference"], "float32")
    reward = OpenReward(Implicit(policy, reference, 512), policy, reference)
    policy.tokenizer.chat_template = (
        "{{ raise_exception('no') if messages[0].role == 'system' }}" + CHATML
    )
    system = [{"role": "system", "content": "Be brief."}, *ASK]
    values = reward.reward([(ASK, "Yeast."), (system, "Yeast."), (LONG, "Air."), (system, "")])
    assert [value.status for value in values] == ["ok", REFUSED, "ok", REFUSED]
    assert values[0].value == pytest.approx(reward.reward([(ASK, "Yeast.")])[0].value, abs=1e-4)
    assert [value.status for value in reward.reward([(system, "")])] == [REFUSED]


def test_models_with_other_vocabularies_are_refused(
    policy: TransformersLikelihood,
) -> None:
    class Other:
        max_context = 512

        class tokenizer:
            get_vocab = staticmethod(lambda: {"a": 0})

    with pytest.raises(InputError, match="different vocabularies"):
        Implicit(policy, Other(), 512)  # type: ignore[arg-type]


def test_a_number_that_is_not_finite_is_a_reason(policy: TransformersLikelihood) -> None:
    class Broken:
        tokenizer, max_context = policy.tokenizer, policy.max_context

        def log_probs(self, sequences: Any, starts: Any) -> list[list[float]]:
            return [[float("-inf")] for _ in sequences]

    [reward] = Implicit(Broken(), Broken(), 512)(ITEMS[:1])
    assert reward.value is None and reward.status == "not_finite"


# The prompt that ICR reads answers under.


def test_every_language_but_english_gets_the_instruction() -> None:
    assert crosslingual(ASK, "en") == ASK
    [message] = crosslingual(ASK, "da")
    assert message["content"] == (
        "Please answer the following instruction using only Danish, unless explicitly instructed "
        "to respond in a different language.\n\nWhy does bread rise?"
    )


def test_of_several_turns_the_last_gets_it() -> None:
    turns = [*ASK, {"role": "assistant", "content": "Yeast."}, {"role": "user", "content": "How?"}]
    asked = crosslingual(turns, "mt")
    assert asked[:2] == turns[:2]
    assert "Maltese" in asked[2]["content"] and asked[2]["content"].endswith("\n\nHow?")
    assert turns[2]["content"] == "How?"


# Yes or no.


def test_the_generative_reward_is_the_share_of_yes(
    models: dict[str, Path], policy: TransformersLikelihood
) -> None:
    for (prompt, answer), reward in zip(ITEMS, Generative(policy, 512)(ITEMS), strict=True):
        text = QUESTION.replace("{prompt}", prompt[0]["content"]).replace("{answer}", answer)
        head = chat_template.prompt_ids(policy.tokenizer, [{"role": "user", "content": text}])
        chances = []
        for word in ("Yes", "No"):
            ids = head + policy.tokenizer.encode(word, add_special_tokens=False)
            chances.append(math.exp(sum(by_hand(models["policy"], ids)[len(head) - 1 :])))
        assert reward.value == pytest.approx(chances[0] / sum(chances), abs=1e-5)
        assert 0 < reward.value < 1


def test_the_generative_reward_does_not_depend_on_the_batch(policy: TransformersLikelihood) -> None:
    judge = Generative(policy, 512)
    together = [reward.value for reward in judge(ITEMS)]
    assert together == pytest.approx([judge([item])[0].value for item in ITEMS], abs=1e-5)


def test_placeholders_in_an_answer_are_text() -> None:
    assert asked("R: {prompt} A: {answer}", ASK, "{prompt} and {answer}") == (
        "R: Why does bread rise? A: {prompt} and {answer}"
    )


def test_a_conversation_is_shown_with_its_roles() -> None:
    turns = [*ASK, {"role": "assistant", "content": "Yeast."}, {"role": "user", "content": "How?"}]
    told = asked("{prompt}|{answer}", turns, "So.")
    assert told == "User: Why does bread rise?\n\nAssistant: Yeast.\n\nUser: How?|So."


def test_a_question_that_does_not_fit_is_too_long(policy: TransformersLikelihood) -> None:
    fits, over = Generative(policy, 120, "{prompt} {answer}")([ITEMS[0], (ASK, "no " * 200)])
    assert fits.status == "ok" and over.status == "too_long" and over.value is None


def test_shares_hold_at_any_size() -> None:
    def share(yes: float, no: float) -> float:
        return expected_value([yes, no], [[1], [2]], [1.0, 0.0])

    assert share(-1000.0, -1000.0) == 0.5
    assert share(-2000.0, -1.0) == 0.0
    assert share(-1.0, -2000.0) == 1.0
    assert share(math.log(0.3), math.log(0.1)) == pytest.approx(0.75)
    assert share(math.log(0.1), math.log(0.3)) == pytest.approx(0.25)
    ten = [math.log(each) for each in (0.5, 0.2, 0.3)]  # 1 and whatever it begins, 2, 10
    assert expected_value(ten, [[1], [2], [1, 0]], [1, 2, 10]) == pytest.approx(
        (0.2 + 0.4 + 3) / 0.7
    )


# A classifier reads the conversation as its own template prints it.


class Reader:
    """A scorer that keeps what it is given to read."""

    max_context = 512

    def __init__(self, family: str) -> None:
        self.tokenizer = tokenizer_of(family)
        self.read: list[list[int]] = []

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        self.read += [list(ids) for ids in sequences]
        return [float(len(ids)) for ids in sequences]


@pytest.mark.parametrize(
    ("family", "printed"),
    [
        # Skywork-Reward-V2 comes in both. No system prompt is added, and BOS stands there once,
        # where a text that is tokenized again would have it twice.
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy does bread rise?"
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYeast.<|eot_id|>",
        ),
        (
            "qwen3",  # its stock template prints an empty thought before the last answer
            "<|im_start|>user\nWhy does bread rise?<|im_end|>\n<|im_start|>assistant\n<think>\n\n"
            "</think>\n\nYeast.<|im_end|>\n",
        ),
    ],
)
def test_a_reward_model_reads_its_own_template(family: str, printed: str) -> None:
    reader = Reader(family)
    [reward] = Classifier(reader, 512)(ITEMS[:1])
    [ids] = reader.read
    assert reader.tokenizer.decode(ids) == printed
    assert reward.value == reward.n_tokens == len(ids)
    if reader.tokenizer.bos_token_id is not None:
        assert ids.count(reader.tokenizer.bos_token_id) == 1


def test_a_classifier_is_not_given_what_is_too_long() -> None:
    reader = Reader("llama3")
    over, fits = Classifier(reader, 40)([(ASK, "yeast " * 60), (ASK, "Yeast.")])
    assert (over.value, over.status, fits.status) == (None, "too_long", "ok")
    assert len(reader.read) == 1

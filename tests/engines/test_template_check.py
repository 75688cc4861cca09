"""The template contract, on the tokens and templates of ten families."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factory.engines import chat_template, template_check
from factory.errors import Check, InputError
from tests.support.families import FAMILIES, Family, tokenizer_of

USER = {"role": "user", "content": "Name three rivers."}
SYSTEM = {"role": "system", "content": "Be brief."}
EVERY = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {name: tokenizer_of(name) for name in FAMILIES}


@pytest.fixture
def tokenizer(built: dict[str, Any], name: str) -> Any:
    return built[name]


def answered(text: str) -> list[dict[str, str]]:
    return [USER, {"role": "assistant", "content": text}]


@EVERY
def test_there_is_one_bos_at_most(tokenizer: Any, name: str) -> None:
    bos = FAMILIES[name].bos
    for ids in (
        chat_template.prompt_ids(tokenizer, [USER]),
        chat_template.conversation_ids(tokenizer, answered("The Po.")),
    ):
        if bos is None:
            assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
        elif name == "chatml":  # its BOS opens every turn
            assert ids[0] == tokenizer.bos_token_id != ids[1]
        elif name == "phi3":  # its template prints none
            assert tokenizer.bos_token_id not in ids
        else:
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(tokenizer.bos_token_id) == 1


@EVERY
def test_a_prompt_is_how_its_conversation_begins(tokenizer: Any) -> None:
    text = "The Po, the Ebro and the Loire."
    [(ids, start)] = chat_template.answered_ids(tokenizer, [([USER], text)])
    assert ids[:start] == chat_template.prompt_ids(tokenizer, [USER])
    [plain] = chat_template.as_text(tokenizer, [{"role": "assistant", "content": text}])
    assert tokenizer.decode(ids[start:-1]).strip() == plain["content"]
    whole = chat_template.conversation_ids(tokenizer, answered(text))
    assert whole[: len(ids)] == ids


@EVERY
def test_an_answer_ends_with_its_stop_token(tokenizer: Any, name: str) -> None:
    [(ids, _)] = chat_template.answered_ids(tokenizer, [([USER], "The Po.")])
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == FAMILIES[name].closing[0]


@EVERY
def test_the_stop_ids_are_complete(tokenizer: Any, name: str) -> None:
    family = FAMILIES[name]
    lean = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)  # a config that names one
    stops = tokenizer.convert_ids_to_tokens(chat_template.stop_ids(tokenizer, lean))
    assert set(stops) == {family.eos, *family.closing}
    assert (
        tuple(tokenizer.convert_ids_to_tokens(chat_template.closing_ids(tokenizer)))
        == family.closing
    )


def test_the_stop_ids_are_those_that_the_published_aya_needs(built: dict[str, Any]) -> None:
    # its checkpoint stops at three tokens, and its generation config names the first alone
    tokenizer = built["aya"]
    config = SimpleNamespace(eos_token_id=[tokenizer.eos_token_id])
    assert set(tokenizer.convert_ids_to_tokens(chat_template.stop_ids(tokenizer, config))) == {
        "<EOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        "<|END_RESPONSE|>",
    }


@EVERY
def test_a_stop_marker_typed_into_an_answer_does_not_cut_it(tokenizer: Any, name: str) -> None:
    text = f"It writes {FAMILIES[name].closing[0]} at the end of a turn, like this."
    [(ids, start)] = chat_template.answered_ids(tokenizer, [([USER], text)])
    [plain] = chat_template.as_text(tokenizer, [{"role": "assistant", "content": text}])
    assert tokenizer.decode(ids[start:-1]).strip() == plain["content"]


@EVERY
def test_a_system_message_is_printed_or_refused_by_name(tokenizer: Any, name: str) -> None:
    assert chat_template.takes_system(tokenizer) == FAMILIES[name].system
    if FAMILIES[name].system:
        assert "Be brief." in tokenizer.decode(chat_template.prompt_ids(tokenizer, [SYSTEM, USER]))
    else:
        with pytest.raises(InputError, match="accepts no system message") as raised:
            chat_template.prompt_ids(tokenizer, [SYSTEM, USER])
        assert "first user turn" in raised.value.fix


@EVERY
def test_thinking_is_off_where_there_is_a_switch(tokenizer: Any, name: str) -> None:
    arguments = chat_template.template_arguments(tokenizer)
    assert arguments == ({"enable_thinking": False} if FAMILIES[name].thinking else {})
    ends = tokenizer.decode(chat_template.prompt_ids(tokenizer, [USER]))
    assert ends.rstrip().endswith("</think>") == FAMILIES[name].thinking


@EVERY
def test_a_family_as_published_breaks_nothing(tokenizer: Any, name: str) -> None:
    closing = chat_template.closing_ids(tokenizer)
    found = template_check.template_faults(tokenizer, SimpleNamespace(eos_token_id=closing))
    assert not found
    assert not template_check.opening_faults(tokenizer)


@EVERY
def test_the_contract_can_be_written_down(tokenizer: Any, name: str) -> None:
    said = chat_template.contract(tokenizer, chat_template.closing_ids(tokenizer))
    assert said["stop_tokens"] == list(FAMILIES[name].closing)
    assert said["leading_bos"] == int(FAMILIES[name].bos is not None and name != "phi3")
    assert said["takes_system"] == FAMILIES[name].system


def test_a_conversation_that_a_template_refuses_is_said_with_its_roles(
    built: dict[str, Any],
) -> None:
    with pytest.raises(InputError, match="conversation of user, user"):
        chat_template.prompt_ids(built["gemma"], [USER, USER])


# What is broken is found, and nothing else is.


def only(tokenizer: Any, config: Any = None) -> Check:
    stops = chat_template.closing_ids(tokenizer) if config is None else config
    [found] = template_check.template_faults(tokenizer, SimpleNamespace(eos_token_id=stops))
    return found


def test_bos_printed_twice() -> None:
    tokenizer = tokenizer_of("llama3")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert "prints <|begin_of_text|> twice" in only(tokenizer).seen
    assert only(tokenizer).level == "warning"
    assert template_check.opening_faults(tokenizer) == [only(tokenizer)]


def test_bos_that_the_template_forgets() -> None:
    tokenizer = tokenizer_of("llama3")
    tokenizer.chat_template = tokenizer.chat_template.replace("bos_token + content", "content")
    found = only(tokenizer)
    assert "prints none" in found.seen and "{{ bos_token }}" in found.fix


def test_no_generation_prompt() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = tokenizer.chat_template.partition("{% if add_generation")[0]
    found = only(tokenizer)
    assert found.level == "error" and "'<|im_start|>assistant" in found.seen


def test_thoughts_that_cannot_be_switched_off() -> None:
    tokenizer = tokenizer_of("qwen3")
    head, add, tail = tokenizer.chat_template.rpartition("{{- '<|im_start|>assistant\\n' }}")
    forced = tail.replace("enable_thinking is defined and enable_thinking is false", "false")
    tokenizer.chat_template = head + "{{- '<|im_start|>assistant\\n<think>\\nHm. ' }}" + forced
    assert add
    found = only(tokenizer)
    assert found.level == "error" and "not a prefix of the conversation" in found.seen
    with pytest.raises(InputError, match="as a prefix of its conversation"):
        chat_template.answered_ids(tokenizer, [([USER], "The Po.")])


def test_a_turn_that_nothing_ends() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    )
    found = only(tokenizer, [])
    assert found.level == "error" and "no token ends the assistant's turn" in found.seen
    with pytest.raises(InputError, match="has no token that ends"):
        chat_template.answered_ids(tokenizer, [([USER], "The Po.")])


def test_a_template_of_another_family_ends_a_turn_with_plain_text() -> None:
    tokenizer = tokenizer_of("llama3")
    tokenizer.chat_template = tokenizer_of("chatml").chat_template
    assert (
        "no token ends the assistant's turn"
        in template_check.template_faults(tokenizer, SimpleNamespace(eos_token_id=None))[0].seen
    )


def test_a_turn_that_only_the_next_speaker_ends_is_for_drawing_alone() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    found = only(tokenizer, [tokenizer.bos_token_id])
    assert found.level == "warning" and "learn to stop" in found.seen
    assert only(tokenizer, []).level == "error"  # and nothing else would stop it


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("deepseek_r1_distill.jinja", "not a prefix of the conversation"),
        ("gptoss.jinja", "<|channel|>final"),
        ("smolvlm.jinja", "incomplete"),  # its messages hold parts, not text
    ],
)
def test_templates_that_cannot_be_drawn_from_and_trained_on_alike(
    template: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = ("<bos>", "<eos>", "<｜end▁of▁sentence｜>", "<|return|>", "<|im_start|>")
    family = Family(template, ends, "<bos>", "<eos>", ())
    monkeypatch.setitem(FAMILIES, "odd", family)
    tokenizer = tokenizer_of("odd")
    found = template_check.template_faults(tokenizer, SimpleNamespace(eos_token_id=1))
    assert found[0].level == "error" and words in found[0].seen


def test_a_generation_config_without_the_closing_token() -> None:
    tokenizer = tokenizer_of("gemma")
    found = only(tokenizer, tokenizer.eos_token_id)
    assert found.level == "warning" and "ends with <end_of_turn>" in found.seen


def test_a_second_turn_that_is_refused_only_warns() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
        + tokenizer.chat_template
    )
    found = only(tokenizer)
    assert found.level == "warning" and "one question only" in found.seen


def test_the_real_tokenizer_of_mistral(tmp_path: Any) -> None:
    # sentencepiece, which opens a text with a blank of its own: it comes with vLLM's packages
    package = importlib.util.find_spec("mistral_common")
    if package is None or package.origin is None:
        pytest.skip("mistral_common is not installed")
    data = Path(package.origin).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    shutil.copy(data, tmp_path / "tokenizer.model")
    family = FAMILIES["mistral"]
    said = {"tokenizer_class": "LlamaTokenizer", "bos_token": family.bos, "eos_token": family.eos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "chat_template.jinja").write_text(family.template)
    tokenizer = chat_template.load_tokenizer(str(tmp_path))
    assert not template_check.template_faults(
        tokenizer, SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
    )
    for text in ("The Po.", "Ærø ligger i Danmark.", "123"):
        [(ids, start)] = chat_template.answered_ids(tokenizer, [([USER], text)])
        assert ids[:start] == chat_template.prompt_ids(tokenizer, [USER])
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        [plain] = chat_template.as_text(tokenizer, [{"role": "assistant", "content": text}])
    assert tokenizer.decode(ids[start:-1]).strip() == plain["content"]

"""Which base, revision and template a released model stands for, on a real hub, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import InputRecord
from factory.engines import chat_template, checkpoint
from factory.errors import FactoryError, HubError, InputError
from factory.release.adapter import find
from tests.support.builders import imported

CONFIG = {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}


@pytest.fixture
def shelf(hub: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Puts repos on a hub: `shelf(name, files) -> commit`."""
    api = HfApi(hub.endpoint, token=hub._token)
    names: list[str] = []

    def put(name: str, **files: str) -> str:
        for path, text in files.items():
            place = tmp_path / "up" / name / path.replace("__", ".")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        api.create_repo(name, exist_ok=True)
        names.append(name)
        return str(api.upload_folder(repo_id=name, folder_path=tmp_path / "up" / name).oid)

    yield put
    for name in set(names):
        api.delete_repo(name)


def base(shelf: Any, weights: str = "one") -> str:
    return str(shelf("org/base", config__json=json.dumps(CONFIG), model__txt=weights))


def lora(base: str | None, revision: str | None = None) -> str:
    return json.dumps(
        {"peft_type": "LORA", "r": 8, "base_model_name_or_path": base, "revision": revision}
    )


def ours(hub: Any, commit: str, template: str = "T") -> str:
    """The manifest of an adapter that was made on org/base at a commit."""
    digest = hub.pin("org/base", "model", commit)[1]
    record = InputRecord(role="base", digest=digest, source="org/base@main", revision=commit)
    made = imported()
    part = made.slices["model"].model_copy(update={"inputs": [record]})
    return made.model_copy(
        update={
            "kind": "adapter",
            "slices": {"all": part},
            "fields": {"dtype": "float32"},
            "template": {"template_hash": text_hash(template)},
        }
    ).dump()


def test_our_adapter_stands_on_its_base_as_it_was_not_as_it_is(hub: Any, shelf: Any) -> None:
    first = base(shelf)
    manifest = ours(hub, first)
    base(shelf, "two")  # main moves on
    shelf("org/adapter", adapter_config__json=lora("org/base", first), factory__json=manifest)
    found = find("org/adapter", hub)
    assert found.base_name == f"org/base@{first}"
    assert (found.base / "model.txt").read_text() == "one"
    assert found.adapter is not None and found.speech == found.base
    assert found.dtype == "float32"


def test_the_same_content_under_another_commit_is_the_base_and_other_content_is_not(
    hub: Any, shelf: Any
) -> None:
    first = base(shelf)
    elsewhere = ours(hub, first).replace(first, "b" * 40)  # another hub's name for it
    shelf("org/adapter", adapter_config__json=lora("org/base", "b" * 40), factory__json=elsewhere)
    assert find("org/adapter", hub).base_name == f"org/base@{first}"
    base(shelf, "two")
    with pytest.raises(InputError, match="not the content that org/adapter was made on") as caught:
        find("org/adapter", hub)
    assert caught.value.fix == f"fetch it: factory pull org/base@{'b' * 40}"


def test_base_says_where_it_lies_and_cannot_replace_it(
    hub: Any, shelf: Any, tmp_path: Path
) -> None:
    first = base(shelf)
    shelf("org/adapter", adapter_config__json=lora("org/base"), factory__json=ours(hub, first))
    here = tmp_path / "here"
    here.mkdir()
    (here / "config.json").write_text(json.dumps(CONFIG))
    (here / "model.txt").write_text("one")
    (here / ".cache").mkdir()
    (here / ".cache" / "note").write_text("what hf download leaves")
    assert find("org/adapter", hub, str(here)).base == here
    assert find("org/adapter", hub, f"org/base@{first}").base_name == f"org/base@{first}"
    (here / "model.txt").write_text("two")
    with pytest.raises(InputError, match="is not the base that org/adapter was made on"):
        find("org/adapter", hub, str(here))
    second = base(shelf, "two")
    with pytest.raises(InputError, match="its content is another"):
        find("org/adapter", hub, f"org/base@{second}")
    with pytest.raises(HubError, match="has no org/other"):
        find("org/adapter", hub, "org/other")


def test_somebody_elses_adapter_says_it_in_its_config(hub: Any, shelf: Any) -> None:
    first = base(shelf)
    second = base(shelf, "two")
    shelf("org/foreign", adapter_config__json=lora("org/base", first))
    assert find("org/foreign", hub).base_name == f"org/base@{first}"
    shelf("org/foreign", adapter_config__json=lora("org/base"))  # as most do: no revision
    found = find("org/foreign", hub)
    assert (found.base_name, found.dtype) == (f"org/base@{second}", "bfloat16")
    with pytest.raises(InputError, match="is not the base"):
        find("org/foreign", hub, f"org/base@{first}")


@pytest.mark.parametrize(
    ("config", "said", "fix"),
    [
        (lora("/home/eve/llama"), "a path of another machine", "--base"),
        (lora(None), "does not say which base", "--base"),
        (lora("org/gone", "c" * 40), "has no org/gone", f"factory pull org/gone@{'c' * 40}"),
        ('{"peft_type": "IA3"}', "not LORA", "LoRA"),
        ("{", "an unreadable adapter_config.json", "LoRA"),
    ],
)
def test_what_has_no_base_to_stand_on_is_refused_with_the_fix(
    hub: Any, shelf: Any, config: str, said: str, fix: str
) -> None:
    shelf("org/foreign", adapter_config__json=config)
    with pytest.raises(FactoryError) as caught:
        find("org/foreign", hub)
    assert said in caught.value.what and fix in caught.value.fix


def test_whole_models_are_taken_as_they_are_and_classifiers_are_not_talked_to(
    hub: Any, shelf: Any
) -> None:
    commit = base(shelf)
    found = find("org/base", hub)
    assert (found.adapter, found.base_name) == (None, f"org/base@{commit}")
    with pytest.raises(InputError, match="has no base"):
        find("org/base", hub, "org/base")
    judge = {"architectures": ["LlamaForSequenceClassification"]}
    shelf("org/reward", config__json=json.dumps(judge))
    with pytest.raises(InputError, match="is a classifier"):
        find("org/reward", hub)
    with pytest.raises(HubError, match="has no model org/nothing") as caught:
        find("org/nothing@v1", hub)
    assert "factory pull org/nothing@v1" in caught.value.fix
    with pytest.raises(InputError, match="neither a repo nor a directory"):
        find("nothing", hub)


def test_a_template_that_it_was_not_trained_with_is_refused(hub: Any, shelf: Any) -> None:
    first = base(shelf)
    files = {
        "adapter_config__json": lora("org/base", first),
        "factory__json": ours(hub, first),
        "tokenizer_config__json": "{}",
    }
    shelf("org/adapter", **files, chat_template__jinja="T")
    found = find("org/adapter", hub)
    assert found.speech == found.adapter
    shelf("org/adapter", **files, chat_template__jinja="another")
    with pytest.raises(InputError, match="not the one it was trained with"):
        find("org/adapter", hub)


_DEEP = "[" * 200_000
_MODEL = {"config": json.dumps({**CONFIG, "model_type": "llama"}), "tokenizer_config": "{}"}
HARM = [
    {"config": "[]"}, {"config": _DEEP}, {"config": '{"model_type": ["llama"]}'},
    {"config": '{"dtype": "load"}'}, {"config": '{"dtype": [1]}'},
    {"config": '{"model_type": "llama", "num_attention_heads": 0}'},
    {"tokenizer": "[]"}, {"tokenizer": _DEEP}, {"tokenizer": '{"a": 1}'},
    {"tokenizer_config": "[]"}, {"tokenizer_config": _DEEP},
    {"adapter_config": "[]"}, {"adapter_config": _DEEP},
    {"adapter_config": '{"peft_type": "LORA", "r": "x"}'},
    {"adapter_config": '{"peft_type": "LORA", "rank_pattern": 5}'},
    {"adapter_config": '{"peft_type": "LORA", "target_modules": [1, "a"]}'},
]  # fmt: skip


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: json.dumps(harm)[:60])
def test_whatever_the_files_of_a_model_hold_one_error_says_so(
    tmp_path: Path, harm: dict[str, str]
) -> None:
    for name, text in {**_MODEL, **harm}.items():
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(InputError) as caught:  # as chat and serve open it
        released = find(str(tmp_path), None, str(tmp_path) if "adapter_config" in harm else None)  # type: ignore[arg-type]
        checkpoint.lora(tmp_path) if released.adapter else released.dtype
        checkpoint.read(released.base)
        chat_template.load_tokenizer(str(released.base))
    assert "\n" not in caught.value.what

"""Forms of a released model: merged weights, GGUF with a Modelfile, each with licence and lineage,
and the results page as a Space."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries

from factory.artifacts.manifest import License
from factory.engines import chat_template
from factory.errors import InputError, StageError
from factory.execution.builtin_models import POCKET
from factory.release import forms, space
from factory.release.adapter import Released, find
from factory.reports.benchmarks import BenchmarkResult, BenchmarkScore, Delta, eval_results
from tests.conftest import run_factory
from tests.support.builders import imported

SMOL = "local/SmolLM2-135M-Instruct-Q4_1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "model"
    POCKET["local/tiny-random-llama"].build(out)
    return out


def written(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


TEMPLATES = {
    # a system prompt of its own where there is none
    "default": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # the system prompt in the user's turn, as Gemma and Mistral have it
    "folded": "{% if messages[0]['role'] == 'system' %}"
    "{% set s = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ s if loop.first else '' }}{{ m['content'] }}[/]"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    # no system prompt at all
    "none": "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]"
    "{{ m['content'] }}[/]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
}


def executed(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's template engine makes of the few words that ours have."""
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    head, _, rest = template.partition("{{ range $i, $_ := .Messages }}")
    if head:
        yes, no = (
            head.removeprefix("{{ if .System }}").removesuffix("{{ end }}").split("{{ else }}")
        )
        head = yes if system else no
    *inside, tail = rest.split("{{ end }}{{ end }}")
    body = "{{ end }}{{ end }}".join(inside) + "{{ end }}"
    text = head
    for number, message in enumerate(messages):
        turn = body
        for role in ("system", "user", "assistant"):
            start = f'{{{{ if eq .Role "{role}" }}}}'
            if start not in turn:
                continue
            before, _, after = turn.partition(start)
            fold = "{{ if and $.System (eq $i 1) }}{{ $.System }}"
            if fold in after:
                one, _, two = after.partition(fold)
                end, _, two = two.partition("{{ end }}")
                after = one + (system + end if system and number == 1 else "") + two
            part, _, after = after.partition("{{ end }}")
            turn = before + (part if message["role"] == role else "") + after
        text += turn.replace("{{ .Content }}", message["content"])
    return text + tail


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_ollama_template_says_what_the_chat_template_says(tiny: Path, name: str) -> None:
    tokenizer = written(chat_template.load_tokenizer(str(tiny)), TEMPLATES[name])
    template = forms.ollama_template(tokenizer)
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
    talks = [[user], [user, answer, user]]
    if name != "none":
        talks += [[{"role": "system", "content": "Brief."}, *talk] for talk in talks]
    for talk in talks:
        assert executed(template, talk) == chat_template.render(tokenizer, talk, True)


def test_a_template_that_says_more_is_refused(tiny: Path) -> None:
    counted = "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}"
    tokenizer = written(chat_template.load_tokenizer(str(tiny)), counted)
    with pytest.raises(InputError, match="cannot be written as Ollama's"):
        forms.ollama_template(tokenizer)


def test_a_card_has_licence_and_lineage() -> None:
    made = imported().model_copy(update={"license": License(id="apache-2.0")})
    released = Released("org/tuned@fp-1", Path("b"), "org/base@c0ffee", Path("a"), Path("b"), made,
                        "org/tuned@beef")  # fmt: skip
    merged = ModelCard(forms.card(released, "merge", "transformers"))
    assert merged.data.license == "apache-2.0"
    assert merged.data.base_model == ["org/tuned", "org/base"]
    assert merged.data.base_model_relation == "merge"
    assert "org/base@c0ffee" in merged.text and "org/tuned@beef" in merged.text
    quantized = ModelCard(forms.card(released, "quantized", "gguf")).data
    assert quantized.base_model == ["org/tuned"] and quantized.library_name == "gguf"
    bare = replace(released, manifest=None)
    assert "says a licence" in forms.card(bare, "merge", "transformers")


def test_what_is_not_installed_or_unknown_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(StageError, match="converter is not here"):
        forms.check_quantization("Q8_0")
    (forms.converter_place()).mkdir(parents=True)
    (forms.converter_place() / "convert_hf_to_gguf.py").touch()
    assert forms.check_quantization("q8_0") == "Q8_0"
    if importlib.util.find_spec("llama_cpp") is None:
        with pytest.raises(StageError, match="which is not installed"):
            forms.check_quantization("Q4_K_M")


def test_scores_are_written_as_the_hub_reads_them() -> None:
    score = BenchmarkScore(
        model="dpo", language="da", dataset="scala-da", metric="mcc", task="t",
        source="EuroEval/scala-da", split="test", backend="vllm", status="ok", version="17.0.0",
        value=41.23456, low=40.0, high=42.0, iterations=10, few_shot=True,
    )  # fmt: skip
    delta = Delta(
        model="dpo", reference="policy", language="da", dataset="scala-da", metric="mcc", task="t",
        why="", before=40.0, after=41.2, change=1.2, low=0.1, high=2.0, significant=True,
        lower_is_better=False,
    )  # fmt: skip
    public = BenchmarkResult(score, delta, "org/results", "fp-1")
    text = eval_results([public, BenchmarkResult(score, delta, "local/results", "fp-1"),
                         replace(public, score=replace(score, source="a-file.csv"))])  # fmt: skip
    assert text is not None
    entry, local = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == (
        "EuroEval/scala-da",
        "scala-da",
        41.23,
    )
    assert entry.source_url == "https://huggingface.co/datasets/org/results/tree/fp-1"
    assert "mcc, da, EuroEval 17.0.0" in str(entry.notes) and local.source_url is None
    assert eval_results([]) is None


def test_evaluation_results_are_no_content() -> None:
    from factory.artifacts.hashing import content_digest

    weights = ("model.safetensors", "1")
    assert content_digest([weights]) == content_digest([weights, (".eval_results/x.yaml", "2")])


def test_the_results_page_goes_to_a_static_space_under_the_names_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from factory.reports.page.source import Source

    sent: dict[str, Any] = {}

    def commit(_: Any, repo: str, adds: Any, **more: Any) -> None:
        sent.update((add.path_in_repo, add.path_or_fileobj) for add in adds)

    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo, **more: sent.update(more, repo=repo))
    monkeypatch.setattr(HfApi, "create_commit", commit)
    made = imported().model_copy(update={"repo": "local/mine", "license": License(id="mit")})
    source = Source((made,), "Mine", None)
    there = space.SpaceHub("https://hub.example", None, {"local": "my-org"})
    assert space.publish(source, there) == "my-org/mine-results"
    assert sent["repo"] == "my-org/mine-results" and sent["space_sdk"] == "static"
    card = ModelCard(sent["README.md"].decode()).data.to_dict()
    assert card["sdk"] == "static" and card["app_file"] == "index.html" and card["license"] == "mit"
    assert "my-org/mine" in card["models"] + card["datasets"]
    page = sent["index.html"].decode()
    assert page.startswith("<!doctype html>") and "local/mine" not in page


@pytest.mark.slow
def test_an_adapter_is_published_merged_and_as_gguf_and_the_tools_load_them(
    home: Path, tmp_path: Path
) -> None:
    # about a minute: two merges of the small real model, whose tokenizer llama.cpp knows
    if not (forms.converter_place() / "convert_hf_to_gguf.py").exists():
        pytest.skip("no converter here: factory doctor --install gguf")
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    from factory.hub.client import Hub
    from factory.localhub.launcher import connect
    from tests.evaluation.euroeval.test_stage import make_adapter

    make_adapter(tmp_path / "adapter", tmp_path)
    (tmp_path / "adapter/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = SMOL
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    with connect(home / "hub") as connection:
        api = HfApi(connection.url, token=connection.token)
        for repo, folder in ((SMOL, tmp_path / "base"), ("local/tuned", tmp_path / "adapter")):
            api.create_repo(repo)
            api.upload_folder(repo_id=repo, folder_path=str(folder))
        slug = api.create_collection(title="mine", namespace="local").slug
        api.add_collection_item(slug, "local/tuned", "model")
    kind = "Q4_K_M" if importlib.util.find_spec("llama_cpp") else "Q8_0"
    for more in (("--repo", "local/merged"), ("--repo", "local/tiny-gguf", "--gguf", kind)):
        done = run_factory("merge", "local/tuned", *more, home=home)
        assert done.returncode == 0, done.stderr
    with connect(home / "hub") as connection:
        api = HfApi(connection.url, token=connection.token)
        shelf = [item.item_id for item in api.get_collection(slug).items]
        assert shelf == ["local/tuned", "local/merged", "local/tiny-gguf"]
        hub = Hub(connection.url, connection.token, cache=tmp_path / "cache")
        merged = find("local/merged", hub)
        assert AutoModelForCausalLM.from_pretrained(merged.base).num_parameters() > 1e8
        place = hub.fetch("local/tiny-gguf", "model", "main")
    fields = GGUFReader(place / f"tuned-{kind}.gguf").fields
    assert fields["general.license"].contents() == "apache-2.0"
    assert "local/tuned" in fields["general.base_model.0.repo_url"].contents()
    assert fields["tokenizer.chat_template"].contents()
    modelfile = (place / "Modelfile").read_text()
    assert modelfile.startswith(f"FROM ./tuned-{kind}.gguf\nTEMPLATE")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile and "apache-2.0" in modelfile
    assert json.loads((place / "params").read_text()) == {"stop": ["<|im_end|>"]}
    if kind == "Q4_K_M":
        import llama_cpp

        model = llama_cpp.Llama(str(place / f"tuned-{kind}.gguf"), n_ctx=256, verbose=False)
        said = model.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=8)
        assert said["choices"][0]["message"]["content"]

"""Benchmarks of a recipe's own: how they are named, how their rows are read, and, slow, how the
real tool measures them, in both versions, against a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.tables import read_slice
from factory.errors import InputError
from factory.evaluation.euroeval import environment, suites
from factory.evaluation.euroeval.own import OwnBenchmark, ready
from factory.evaluation.euroeval.stage import Euroeval
from factory.stage.inputs import ExternalInput, SliceSpec
from factory.stage.job import Job, Place

MODEL = ExternalInput("model", "local/model@main", "model")
QUIZ = {
    "name": "quiz",
    "task": "knowledge",
    "source": "org/quiz",
    "config": "default",  # its rows do not say their language
    "columns": {"text": "q", "label": "key"},
    "choices": ["one", "two"],
    "labels": {"1": "a", "2": "b"},
}


def stage(benchmarks: Any, **knobs: Any) -> Euroeval:
    given = {"of": ["policy"], "iterations": 2, "few_shot": False, "backend": "openai",
             "benchmarks": benchmarks, **knobs}  # fmt: skip
    return Euroeval.model_validate(given)


def dataset(root: Path, config: str, split: str, rows: list[dict[str, Any]]) -> Path:
    """A dataset with a config for each language, as Hub datasets have them."""
    (root / config).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (root / config / f"{split}.jsonl").write_text(text)
    configs = "".join(
        f"- config_name: {folder.name}\n  data_files:\n"
        + "".join(f"  - {{split: {f.stem}, path: {folder.name}/{f.name}}}\n"
                  for f in sorted(folder.iterdir()))
        for folder in sorted(root.iterdir()) if folder.is_dir()
    )  # fmt: skip
    (root / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return root


def questions(count: int, size: int = 40) -> list[dict[str, Any]]:
    """Rows in the form of MultiWikiQA."""
    return [
        {"id": f"u{n}", "title": "T", "context": f"Tá an teach {n} mór. " + "x" * size,
         "question": f"Cad atá mór, a {n}?",
         "answers": {"text": [f"teach {n}"], "answer_start": [6]}}
        for n in range(count)
    ]  # fmt: skip


def passages(count: int) -> list[dict[str, Any]]:
    """Rows in the form of Belebele."""
    return [
        {"link": "l", "question_number": 1, "flores_passage": f"Id-dar numru {n} hija kbira.",
         "question": f"X'inhi kbira ({n})?", "mc_answer1": "id-dar", "mc_answer2": "il-baħar",
         "mc_answer3": "it-triq", "mc_answer4": "il-karozza",
         "correct_answer_num": str(n % 4 + 1), "dialect": "mlt_Latn", "ds": "2023-05-03"}
        for n in range(count)
    ]  # fmt: skip


def test_a_question_with_choices_is_written_as_euroeval_reads_it(tmp_path: Path) -> None:
    one = ready("belebele-mt", "mt")
    assert one is not None
    rows, dropped = one.rows(dataset(tmp_path, "mlt_Latn", "test", passages(40)), "mt")
    assert {split: len(rows) for split, rows in rows.items()} == {"val": 5, "train": 10, "test": 25}
    assert not dropped
    whole = [row for split in rows.values() for row in split]
    row = next(row for row in whole if "numru 5 " in row["text"])
    assert row == {
        "text": "Id-dar numru 5 hija kbira.\n\nX'inhi kbira (5)?\nChoices:\n"
        "a. id-dar\nb. il-baħar\nc. it-triq\nd. il-karozza",
        "label": "b",
    }


def test_rows_that_are_too_long_are_counted_and_the_same_rows_fall_into_the_same_split(
    tmp_path: Path,
) -> None:
    one = ready("multi-wiki-qa-ga", "ga")
    assert one is not None
    rows = [*questions(30), *questions(1), *questions(2, size=6000)]
    first, dropped = one.rows(dataset(tmp_path / "a", "ga", "train", rows), "ga")
    again, _ = one.rows(dataset(tmp_path / "b", "ga", "train", rows[::-1]), "ga")
    assert dropped == {"too_long": 2, "repeated": 1} and first == again
    assert first["test"][0].keys() == {"id", "context", "question", "answers"}


def test_a_language_that_the_source_lacks_is_named(tmp_path: Path) -> None:
    one = ready("multi-wiki-qa-ga", "ga")
    assert one is not None
    with pytest.raises(InputError, match="does not say the language of its rows"):
        one.rows(dataset(tmp_path, "cy", "train", questions(20)), "ga")


def test_a_benchmark_with_splits_of_its_own_keeps_them_and_bad_labels_are_told(
    tmp_path: Path,
) -> None:
    one = OwnBenchmark.model_validate({**QUIZ, "splits": {"train": "dev", "test": "test"}})
    rows = [{"q": f"Q{n}?", "one": "x", "two": "y", "key": n % 2 + 1} for n in range(6)]
    dataset(tmp_path, "default", "dev", rows[:2])
    dataset(tmp_path, "default", "test", rows[2:])
    read, _ = one.rows(tmp_path, "ga")
    assert {split: len(found) for split, found in read.items()} == {"train": 2, "test": 4}
    assert {row["label"] for row in read["test"]} == {"a", "b"}
    dataset(tmp_path, "default", "test", [{**row, "key": 3} for row in rows])
    with pytest.raises(InputError, match="label '3'"):
        one.rows(tmp_path, "ga")


@pytest.mark.parametrize(
    ("benchmarks", "why"),
    [
        ({"ga": [{**QUIZ, "name": "scala-da"}]}, "is a benchmark of EuroEval's"),
        ({"ga": [{**QUIZ, "task": "knowlege"}]}, "did you mean 'knowledge'"),
        ({"ga": [{**QUIZ, "prompts": "ga"}]}, "no prompts for knowledge in ga, only"),
        ({"ga": [{**QUIZ, "splits": {"train": "x"}}]}, "names no test"),
        ({"ga": ["multi-wiki-qa-mt"]}, "no benchmark 'multi-wiki-qa-mt'"),
        ({"ga": [QUIZ, QUIZ]}, "names one of them twice"),
        ({"ga": [{**QUIZ, "task": "reading-comprehension"}]}, "has no choices"),
    ],
)
def test_what_cannot_be_measured_is_refused(benchmarks: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        stage(benchmarks)


@pytest.mark.parametrize("version", suites.VERSIONS)
def test_parallel_sentences_are_a_benchmark_of_translation_by_chrf(
    tmp_path: Path, version: suites.Version
) -> None:
    rows = [{"eng": f"House {n} is big.", "gle": f"Tá teach {n} mór."} for n in range(40)]
    source = dataset(tmp_path / "source", "default", "test", rows)
    flores = {
        "name": "flores-ga", "task": "translation", "source": "org/flores", "config": "default",
        "columns": {"text": "eng", "target_text": "gle"}, "split": "test",
    }  # fmt: skip
    own = stage({"ga": [flores]}, languages=["ga"], version=version).own("ga")["flores-ga"]
    assert "chr_f3pp" in " ".join(own.benchmark("ga", version).metrics)
    found = own.rows(source, "ga")[0]
    assert [len(found[split]) for split in ("val", "train", "test")] == [5, 10, 25]
    assert found["test"][0].keys() == {"text", "target_text"}
    assert found["test"][0]["target_text"].startswith("Tá teach")


def test_prompts_are_of_the_language_where_euroeval_has_them_and_english_else() -> None:
    one = OwnBenchmark.model_validate(QUIZ)
    assert one.prompt_language("ga", "17.0.0") == "en"
    assert one.prompt_language("da", "17.0.0") == "da"


def test_the_version_is_part_of_what_a_score_is_and_of_its_suites() -> None:
    spec = SliceSpec("euroeval", "lb/policy", "lb", ())
    old, new = stage("official"), stage("official", version="18.0.0")
    assert old.identity_fields(spec)["tool_version"] == "17.0.0"
    assert new.identity_fields(spec)["tool_version"] == "18.0.0"
    assert new.suite("lb") and not old.suite("lb")  # Luxembourgish came with 18
    with pytest.raises(ValueError, match=r"EuroEval 17\.0\.0 has no benchmark 'ltzglue-ner'"):
        stage({"lb": ["ltzglue-ner"]})
    assert stage({"lb": ["ltzglue-ner"]}, version="18.0.0")
    with pytest.raises(ValueError, match=r"'17\.0\.0' or '18\.0\.0'"):
        stage("official", version="17.0.1")


def test_how_the_rows_are_read_is_part_of_what_a_score_is() -> None:
    plain, other = stage({"ga": [QUIZ]}), stage({"ga": [{**QUIZ, "labels": {"1": "b", "2": "a"}}]})
    assert plain.extent() != other.extent()
    one, two = (next(iter(made.own("ga").values())) for made in (plain, other))
    assert one.digest("content") != two.digest("content")
    # the same words as before benchmarks could be one's own
    assert stage({"da": ["danwic"]}).extent() == {}


# the real tool


class _Server(BaseHTTPRequestHandler):
    """Answers every question at once: a label where one is to be chosen, else a text."""

    def _reply(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        text = '{"label": "a"}' if "response_format" in asked else "teach"
        choice = {"index": 0, "finish_reason": "stop",
                  "message": {"role": "assistant", "content": text}}  # fmt: skip
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._reply({"id": "1", "object": "chat.completion", "created": 0, "model": "tiny",
                     "choices": [choice], "usage": usage})  # fmt: skip

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """An OpenAI-compatible server with one model; gives what it was asked."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    listener.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{listener.server_port}/v1")
    yield listener.asked  # type: ignore[attr-defined]
    listener.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("version", suites.VERSIONS)
def test_the_real_tool_measures_a_ready_benchmark_and_one_of_ones_own(
    tmp_path: Path, server: list[dict[str, Any]], version: suites.Version
) -> None:
    # about a minute each: EuroEval's import
    if not (environment.default_place("openai", version) / "benchmarks.json").exists():
        pytest.skip(f"no EuroEval {version} here: factory doctor --install")
    model = tmp_path / "tiny"
    model.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (model / "config.json").write_text(json.dumps(config))
    wiki = dataset(tmp_path / "wiki", "ga", "train", questions(40))
    quiz = dataset(tmp_path / "quiz", "default", "train", [
        {"q": f"Cé mhéad is {n}?", "one": "a haon", "two": "a dó", "key": n % 2 + 1}
        for n in range(40)])  # fmt: skip
    made = stage({"ga": ["multi-wiki-qa-ga", QUIZ]}, version=version,
                 how={"served_models": {"policy": "tiny"}, "limit": 400})  # fmt: skip
    data = [ExternalInput("multi-wiki-qa-ga", "alexandrainst/multi-wiki-qa@main", "dataset"),
            ExternalInput("quiz", "org/quiz@main", "dataset")]  # fmt: skip
    spec = SliceSpec("euroeval", "ga/policy", "ga", (MODEL, *data))
    places = {MODEL: Place(model, "local/model", "main"), data[0]: Place(wiki, "w/w"),
              data[1]: Place(quiz, "org/quiz")}  # fmt: skip
    (tmp_path / "work/out").mkdir(parents=True)
    job = Job("euroeval", 0, (spec,), places, tmp_path / "work", tmp_path / "work/out",
              lambda *_, **__: None)  # fmt: skip
    outcome = made.run(job)
    rows = {(row["dataset"], row["metric"]): row
            for row in read_slice(job.out, "ga/policy", "results").to_pylist()}  # fmt: skip
    assert {name for name, _ in rows} == {"multi-wiki-qa-ga", "quiz"}
    assert all(row["value"] is not None and row["tool_version"] == version for row in rows.values())
    # "a" is the right label of about half of the questions: always saying so is no knowledge
    assert rows["quiz", "mcc"]["value"] == 0
    assert 0 < rows["quiz", "accuracy"]["value"] < 100
    assert rows["quiz", "mcc"]["failed"] == 0
    assert outcome.stats["own"][0]["prompts"] == "en"
    assert outcome.stats["own"][0]["rows"] == {"val": 5, "train": 10, "test": 25}
    texts = "\n".join(asked["messages"][-1]["content"] for asked in server)
    assert "Choices: a. a haon b. a dó" in texts  # EuroEval makes blanks of line breaks
    assert "Tá an teach" in texts
    assert "Answer the following question" in texts  # in English: EuroEval has no words in Irish

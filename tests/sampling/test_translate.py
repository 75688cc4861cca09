"""The translate stage: which languages it makes, what it sends, what it drops and why, and what the
stages after it read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from factory.artifacts import schemas, tables
from factory.artifacts.reuse import ReusableSlice
from factory.artifacts.tables import read_slice, slice_directory
from factory.engines import Completion, Sampling, choose
from factory.errors import RecipeError
from factory.execution.builtin_models import POCKET
from factory.pairs.pair import Pair
from factory.planning.recipe import load
from factory.rewards.backends import open_reward
from factory.rewards.backends.backend import RewardSettings
from factory.rewards.backends.classifier import ClassifierBackend
from factory.rewards.backends.embedding import EmbeddingBackend
from factory.rewards.backends.generative import GenerativeBackend
from factory.rewards.score import Score
from factory.sampling.generate import Generate
from factory.sampling.quality import QUESTIONS, Quality
from factory.sampling.sources import Prompts, Questions
from factory.sampling.translate import Translate
from factory.stage.inputs import ExternalInput
from factory.stage.job import Job, Place
from factory.stage.models import ModelRef
from factory.stage.outcome import Outcome
from factory.stage.readers import address
from factory.stage.stage import StageContext
from tests.conftest import run_factory

EN = [
    "Yesterday I took my bicycle to the workshop because the chain had broken again.",
    "What can I do in the evening to fall asleep more easily?",
]
DE = [
    "Gestern habe ich mein Fahrrad in die Werkstatt gebracht, weil die Kette gerissen war.",
    "Was kann ich abends tun, um leichter einzuschlafen?",
]
FR = "Hier, j'ai apporté mon vélo à l'atelier parce que la chaîne était encore cassée."
BOOK = dict(zip(EN, DE, strict=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    POCKET["local/tiny-random-llama"].build(out)
    return out


class Translator:
    """A sampler with the tiny model's real tokenizer that answers from a book, so that a test can
    say what came back. Keeps what it was asked."""

    def __init__(self, model: Path, answer: Callable[[str], str], cut: bool = False) -> None:
        from factory.engines import chat_template

        self.tokenizer = chat_template.load_tokenizer(str(model))
        self.stop_ids = [self.tokenizer.eos_token_id]
        self.name, self.lanes, self.tokens = "a book", 1, 0
        self.max_context = 2048
        self.asked: list[str] = []
        self.prompts: list[list[int]] = []
        self.sampling: Sampling | None = None
        self._answer, self._cut = answer, cut

    def close(self) -> None:
        pass

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        self.sampling = sampling
        found = []
        for prompt in prompts:
            self.prompts.append(list(prompt))
            text = self.tokenizer.decode(prompt)
            assert text.count("<|im_start|>user") == 1
            body = text.split("<|im_end|>")[0].split("<|im_start|>user\n")[1]
            self.asked.append(body)
            said = self._answer(body.rpartition("\n\n")[2].rpartition("<<<text>>>")[2])
            ids = self.tokenizer(said, add_special_tokens=False)["input_ids"]
            found.append(Completion(tuple(ids), "length" if self._cut else "stop"))
        return found


def scope(stage: Translate, *languages: str, **stages: Any) -> StageContext:
    ref = ModelRef(name="org/model")
    raters = {
        "rater": GenerativeBackend(kind="generative", name="org/model", scale="1-10"),
        "alike": EmbeddingBackend(kind="embedding", name="org/model"),
        "classifier": ClassifierBackend(kind="classifier", name="org/model"),
    }
    steps = {"prompts": Prompts(source="p-{language}.jsonl"), "translate": stage, **stages}
    return StageContext(
        languages or ("en", "de"), {"translator": ref, "policy": ref, **raters}, steps
    )


def talk(*texts: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def write_prompts(root: Path, code: str, said: Sequence[list[dict[str, str]]]) -> None:
    rows = [
        {**address({"id": f"p{number}"}, messages, ""), "language": code, "messages": messages,
         "source_dataset": "here", "domain": "life"}
        for number, messages in enumerate(said)
    ]  # fmt: skip
    tables.write_slice(slice_directory(root, code), schemas.from_rows(rows, "prompts"))


@pytest.fixture
def run(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the stage over English prompts with a translator that answers from a book."""

    def go(
        said: Sequence[str | list[dict[str, str]]],
        answer: Callable[[str], str] = lambda text: BOOK.get(text, text),
        cut: bool = False,
        earlier: dict[str, tuple[ReusableSlice, ...]] | None = None,
        out: str = "out",
        **knobs: Any,
    ) -> tuple[list[dict[str, Any]], Outcome, Translator]:
        stage = Translate(**knobs)
        messages = [talk(one) if isinstance(one, str) else one for one in said]
        write_prompts(tmp_path / "in", stage.source_language, messages)
        if stage.compare:
            write_prompts(tmp_path / "in", "de", [talk(text) for text in DE])
        translator = Translator(model, answer, cut)
        monkeypatch.setattr(choose, "sampler", lambda *_: translator)
        specs = stage.plan_slices(scope(stage))
        places = {
            need: Place(model if isinstance(need, ExternalInput) else tmp_path / "in")
            for spec in specs
            for need in spec.needs
        }
        (tmp_path / f"work-{out}").mkdir(exist_ok=True)
        job = Job("translate", 0, tuple(specs), places, tmp_path / f"work-{out}", tmp_path / out,
                  lambda done, total, unit, tokens=0: None, earlier or {})  # fmt: skip
        outcome = stage.run(job)
        assert all(rows.balanced() for rows in outcome.rows.values())
        return read_slice(tmp_path / out, "de", "prompts").to_pylist(), outcome, translator

    return go


# which languages


def test_by_default_every_other_language_is_made():
    found = scope(Translate(), "da", "en", "cy")
    assert [spec.name for spec in found.slices("translate", "x")] == ["da", "cy"]
    assert [spec.name for spec in found.slices("prompts", "x")] == ["en"]
    assert {spec.name: spec.step for spec in found.prompts("x")} == {
        "da": "translate", "en": "prompts", "cy": "translate",
    }  # fmt: skip


def test_what_comes_natively_is_not_translated():
    found = scope(Translate(languages=("cy",)), "da", "en", "cy")
    assert [spec.name for spec in found.slices("prompts", "x")] == ["da", "en"]
    assert [spec.step for spec in found.prompts("x")] == ["prompts", "prompts", "translate"]


def test_the_source_is_read_though_nobody_samples_in_it():
    found = scope(Translate(), "da", "cy")
    assert [spec.name for spec in found.slices("prompts", "x")] == ["en"]
    assert [spec.name for spec in found.prompts("x")] == ["da", "cy"]


def test_a_language_beside_the_recipes_is_made_and_not_sampled_in():
    found = scope(Translate(languages=("de",), compare=True), "en", "es")
    assert [spec.name for spec in found.slices("prompts", "x")] == ["en", "es", "de"]
    assert [spec.name for spec in found.prompts("x")] == ["en", "es"]


def test_all_that_follows_reads_the_translations_and_questions_are_left_alone():
    stages = {"generate": Generate(), "score": Score(reward="reward"), "pair": Pair()}
    ref = ClassifierBackend(name="org/reward", kind="classifier")
    found = scope(Translate(), "da", "en", **stages, questions=Questions(source="q.jsonl"))
    found = StageContext(found.languages, {**found.models, "reward": ref}, found.stages)
    for name in ("generate", "score", "pair"):
        [danish] = [spec for spec in found.slices(name, "x") if spec.name == "da"]
        read = danish.need("prompts")
        assert read is not None and (read.step, read.slice) == ("translate", "da")  # type: ignore
    assert [spec.name for spec in found.slices("questions", "x")] == ["da", "en"]


@pytest.mark.parametrize(
    ("knob", "what"),
    [
        ("stages.translate.languages=[nor]", "unknown language 'nor' (did you mean 'no'"),
        ("stages.translate.languages=[de, de]", "twice"),
        ("stages.translate.languages=[en]", "nothing to translate"),
        ("stages.translate.languages=[]", "nothing to translate"),
        ("stages.translate.source_language=eng", "unknown language 'eng'"),
        ("stages.translate.names={xx: Klingon}", "unknown language 'xx'"),
        ("stages.translate.format=telepathy", "format"),
        ("stages.translate.from=org/name", "let prompts read"),
    ],
)
def test_what_cannot_be_is_said_when_the_recipe_is_loaded(knob, what):
    with pytest.raises(RecipeError) as raised:
        load("demo", [knob])
    assert what in raised.value.what


def test_turns_that_the_prompts_have_are_not_left_out_in_silence():
    every = Prompts(source="p-{language}.jsonl", turns="all")
    with pytest.raises(RecipeError, match="all turns but the first"):
        scope(Translate(), prompts=every).slices("translate", "x")
    assert scope(Translate(turns="all"), prompts=every).slices("translate", "x")


# what is made


def test_prompts_come_back_in_another_language_with_their_ids(run):
    rows, outcome, translator = run(EN)
    assert [row["messages"] for row in rows] == [talk(text) for text in DE]
    assert [row["prompt_id"] for row in rows] == ["p0", "p1"]
    for row, source in zip(rows, EN, strict=True):
        assert row["prompt_hash"] == address({}, row["messages"], "")["prompt_hash"]
        assert row["source_hash"] == address({}, talk(source), "")["prompt_hash"]
        assert (row["language"], row["source_language"]) == ("de", "en")
        assert (row["finish_reason"], row["detected_language"]) == ("stop", "de")
        assert (row["source_dataset"], row["domain"]) == ("here", "life")
    assert translator.sampling.temperature == 0
    assert outcome.rows["de"].dropped == {}
    assert outcome.tokens > 0


def test_assistant_turns_are_not_translated_unless_asked_for(run):
    said = [talk(EN[0], EN[1], "Thanks")]
    rows, _, translator = run(said)
    assert len(translator.asked) == 1
    assert rows[0]["messages"] == talk(DE[0])


def test_with_turns_all_every_message_is(run):
    book = BOOK | {"Thanks": "Danke"}
    rows, _, translator = run([talk(EN[0], EN[1], "Thanks")], book.get, turns="all")
    assert len(translator.asked) == 3
    assert rows[0]["messages"] == talk(DE[0], DE[1], "Danke")


@pytest.mark.parametrize(
    ("answer", "cut", "why"),
    [
        (lambda text: text, False, "copied"),
        (lambda text: FR, False, "wrong_language"),
        (lambda text: " ".join([BOOK[text]] * 9), False, "length_ratio"),
        (lambda text: "", False, "empty"),
        (lambda text: BOOK[text], True, "cut_off"),
    ],
)
def test_what_is_not_believed_is_dropped_with_its_reason(run, tmp_path, answer, cut, why):
    rows, outcome, _ = run(EN[:1], answer, cut)
    assert rows == []
    assert outcome.rows["de"].dropped == {why: 1}
    [lost] = (tmp_path / "out" / "dropped" / "de.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lost)["reason"] == why
    assert json.loads(lost)["translation"] == answer(EN[0])


def test_as_published_nothing_is_dropped_but_every_row_says_what_it_is(run):
    rows, outcome, _ = run(EN[:1], lambda text: FR, cut=True, keep_flawed=True)
    assert outcome.rows["de"].dropped == {}
    assert (rows[0]["finish_reason"], rows[0]["detected_language"]) == ("length", "fr")


def test_text_that_holds_the_formats_markers_is_not_sent(run):
    texts = [EN[0], f"{EN[1]} <<<target>>>fr", f"{EN[1]} <|im_end|>"]
    rows, outcome, translator = run(texts, format="translategemma")
    assert translator.asked == [f"<<<source>>>en<<<target>>>de<<<text>>>{EN[0]}"]
    assert len(rows) == 1
    assert outcome.rows["de"].dropped == {"markers": 2}


def test_markers_inside_code_are_only_code(run):
    code = "```\n<<<target>>>fr\n```"
    rows, _, _ = run([f"{EN[0]}\n{code}"], format="translategemma")
    assert rows[0]["messages"][0]["content"] == f"{DE[0]}\n{code}"


def test_code_is_sent_like_the_rest_where_a_recipe_says_so(run):
    text = f"{EN[0]}\n```\nx = 1\n```\n"
    _, _, kept = run([text], out="kept")
    assert not any("x = 1" in body for body in kept.asked)
    _, _, sent = run([text, "12 + 7"], code="send", keep_flawed=True)
    assert [body.rpartition("\n\n")[2] for body in sent.asked] == [text.strip(), "12 + 7"]


def test_an_over_long_text_drops_its_prompt_where_a_recipe_says_so(run):
    long = " ".join(EN * 4)
    whole = len(run([EN[0]], out="one")[2].prompts[0])  # the words of the request count as well
    rows, _, parts = run([EN[0], long], out="parts", chunk=whole, keep_flawed=True)
    assert len(rows) == 2 and len(parts.asked) > 2
    rows, outcome, sent = run([EN[0], long], chunk=whole, over="drop", keep_flawed=True)
    assert [row["prompt_id"] for row in rows] == ["p0"] and len(sent.asked) == 1
    assert outcome.rows["de"].dropped == {"too_long": 1}
    _, outcome, _ = run([EN[0]], out="over", chunk=whole - 1, over="drop", keep_flawed=True)
    assert outcome.rows["de"].dropped == {"too_long": 1}


def test_a_completion_model_is_sent_paragraphs_whatever_is_asked_for():
    with pytest.raises(ValueError, match="one paragraph at a time"):
        Translate(format="completion", over="drop")


def test_a_long_text_is_sent_in_parts_that_the_translator_was_made_for(run):
    text = " ".join([EN[0], EN[1]] * 40)
    rows, _, translator = run([text], lambda part: part, chunk=64, keep_flawed=True)
    assert rows[0]["messages"][0]["content"] == text
    bodies = [asked.rpartition("\n\n")[2] for asked in translator.asked]
    tokens = [len(translator.tokenizer(body)["input_ids"]) for body in bodies]
    assert len(bodies) > 4 and max(tokens) <= 64
    assert all(body[-1] in ".?" for body in bodies)


def test_text_that_the_model_cannot_read_at_all_is_dropped(run):
    rows, outcome, translator = run(["word " * 4000], chunk=10**6)
    assert (rows, translator.asked) == ([], [])
    assert outcome.rows["de"].dropped == {"too_long": 1}


def test_a_prompt_reaches_the_engine_as_ids_with_one_bos(run):
    _, _, translator = run(EN)
    bos = translator.tokenizer.bos_token_id
    assert all(ids[0] == bos != ids[1] for ids in translator.prompts)


def test_the_source_may_be_another_language(run):
    _, _, translator = run([FR], lambda text: DE[0], source_language="fr", languages=("de",))
    assert "from French into German" in translator.asked[0]


def test_nothing_is_written_but_where_the_job_says(run, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run(EN)
    assert list(elsewhere.iterdir()) == []


def test_only_the_first_prompts_are_asked_for(run):
    rows, outcome, _ = run(EN, first=1)
    assert [row["prompt_id"] for row in rows] == ["p0"]
    assert outcome.rows["de"].into == 1


def test_translations_are_laid_beside_what_people_wrote(run):
    wrong = {EN[0]: DE[0], EN[1]: FR}
    _, outcome, _ = run(EN, wrong.get, compare=True)
    figures = outcome.stats["by_language"]["de"]
    assert figures["compared"] == 2
    assert figures["chrf_kept"] == pytest.approx(100)
    assert 20 < figures["chrf_all"] < 99


# going on


def test_a_killed_run_goes_on_at_its_shard_and_knows_what_it_dropped(run, tmp_path):
    def dies(text: str) -> str:
        if text == EN[1]:
            raise KeyboardInterrupt
        return FR

    with pytest.raises(KeyboardInterrupt):
        run(EN, dies, how={"shard": 1})
    rows, outcome, translator = run(EN, how={"shard": 1})
    assert len(translator.asked) == 1
    assert [row["prompt_id"] for row in rows] == ["p1"]
    assert outcome.rows["de"].dropped == {"wrong_language": 1}


def test_more_prompts_translate_only_those(run, tmp_path):
    run(EN[:1])
    before = ReusableSlice(slice_directory(tmp_path / "out", "de"), "org/a@fp-1", whole=False)
    rows, outcome, translator = run(EN, earlier={"de": (before,)}, out="more")
    assert len(translator.asked) == 1
    assert [row["messages"] for row in rows] == [talk(text) for text in DE]
    assert outcome.rows["de"].out == 2


def test_a_prompt_in_other_words_is_translated_anew(run, tmp_path):
    run([EN[1]])
    before = ReusableSlice(slice_directory(tmp_path / "out", "de"), "org/a@fp-1", whole=False)
    rows, _, translator = run([EN[0]], earlier={"de": (before,)}, out="other")
    assert len(translator.asked) == 1
    assert rows[0]["messages"] == talk(DE[0])


def test_a_slice_that_stands_as_a_whole_still_says_what_it_dropped(run, tmp_path):
    run(EN, {EN[0]: DE[0], EN[1]: FR}.get)
    before = ReusableSlice(slice_directory(tmp_path / "out", "de"), "org/a@fp-1", whole=True)
    rows, outcome, translator = run(EN, earlier={"de": (before,)}, out="again")
    assert translator.asked == []
    assert len(rows) == 1
    assert outcome.rows["de"].dropped == {"wrong_language": 1}
    assert (tmp_path / "again" / "dropped" / "de.jsonl").exists()


def test_languages_do_not_share_a_name_that_is_meant_for_one():
    stage = Translate(languages=("pt", "de"), names={"pt": "Brazilian Portuguese"})
    pt, de = stage.plan_slices(scope(stage, "en"))
    assert stage.identity_fields(pt) == {"names": {"pt": "Brazilian Portuguese"}}
    assert stage.identity_fields(de) == {}


def test_the_tiny_model_itself_translates(tmp_path, model):
    """The real engine, whatever a model with random weights says."""
    stage = Translate(max_tokens=4, dtype="float32", keep_flawed=True, length_ratio=None)
    write_prompts(tmp_path / "in", "en", [talk(text) for text in EN])
    specs = stage.plan_slices(scope(stage))
    places = {need: Place(model if need.role == "model" else tmp_path / "in")
              for spec in specs for need in spec.needs}  # fmt: skip
    (tmp_path / "work").mkdir()
    job = Job("translate", 0, tuple(specs), places, tmp_path / "work", tmp_path / "out",
              lambda done, total, unit, tokens=0: None)  # fmt: skip
    outcome = stage.run(job)
    table = read_slice(tmp_path / "out", "de", "prompts")
    assert isinstance(table, pa.Table)
    assert len(table) + sum(outcome.rows["de"].dropped.values()) == 2
    assert outcome.tokens == 8


@pytest.mark.slow
def test_another_language_and_another_prompt_translate_only_what_is_new(home: Path) -> None:
    """As a user runs it: the smoke recipe, with the drops of a random model left in."""

    def go(*knobs: str) -> dict[str, dict[str, Any]]:
        sets = ["keep_flawed=true", "compare=false", *knobs]
        options = [part for knob in sets for part in ("--set", f"stages.translate.{knob}")]
        done = run_factory(
            "run", "smoke", "--only", "prompts", "--only", "translate", *options, home=home
        )
        assert done.returncode == 0, done.stdout + done.stderr
        paths = home.glob("work/local/*/artifact/factory.json")
        newest = max(paths, key=lambda path: path.stat().st_mtime)
        slices: dict[str, dict[str, Any]] = json.loads(newest.read_text())["slices"]
        return slices

    assert go()["de"]["rows"]["out"] == 6
    slices = go("languages=[de, it]", "first=7")
    assert {name: made["rows"]["out"] for name, made in slices.items()} == {"de": 7, "it": 7}
    assert {name: sum(made["taken_over"].values()) for name, made in slices.items()} == {
        "de": 6, "it": 0,
    }  # fmt: skip


# quality


def back_and_forth(text: str) -> str:
    """Translate by the book, in either direction; the second sentence comes back otherwise."""
    forth = {**BOOK, DE[0]: EN[0], DE[1]: "Why do I wake up at night?"}
    return forth.get(text, text)


@pytest.mark.parametrize(
    ("quality", "kept", "dropped"),
    [
        ({"by": "back"}, 2, {}),
        ({"by": "back", "least": 60}, 1, {"low_quality": 1}),
        ({"by": "back", "least": 0}, 2, {}),
    ],
)
def test_161_171_quality_is_how_a_translation_comes_back(run, tmp_path, quality, kept, dropped):
    rows, outcome, translator = run(EN, back_and_forth, quality=quality)
    assert len(rows) == kept
    assert rows[0]["quality"] == pytest.approx(100.0)
    assert outcome.rows["de"].dropped == dropped
    figures = outcome.stats["by_language"]["de"]["quality"]
    assert (figures["n"], figures["p95"] > 90, figures["p5"] < 60) == (2, True, True)
    assert sum("into English" in asked for asked in translator.asked) == 2
    if dropped:
        [lost] = (tmp_path / "out" / "dropped" / "de.jsonl").read_text().splitlines()
        record = json.loads(lost)
        assert record["reason"] == "low_quality" and record["quality"] < 60
        assert record["translation"] == DE[1]


def test_what_is_dropped_already_is_not_translated_back(run):
    rows, outcome, translator = run([EN[0], FR], back_and_forth, quality={"by": "back"})
    assert (len(rows), outcome.rows["de"].dropped) == (1, {"copied": 1})
    assert len(translator.asked) == 3


@pytest.mark.parametrize(("reward", "low", "high"), [("rater", 1, 10), ("alike", -1, 1)])
def test_9_161_171_quality_is_what_a_reward_says(run, model, reward, low, high):
    """The tiny model rates source and translation, or compares their embeddings."""
    knobs: Any = {"dtype": "float32", "how": {"engine": "transformers"}}
    rows, outcome, translator = run(EN, **knobs, quality={"by": "reward", "reward": reward})
    values = [row["quality"] for row in rows]
    assert len(translator.asked) == 2, "nothing is translated back"
    assert low <= min(values) < max(values) <= high
    stage = Translate(**knobs, quality={"by": "reward", "reward": reward})
    [spec] = stage.plan_slices(scope(stage))
    job = Job("x", 0, (spec,), {need: Place(model) for need in spec.needs}, model, model,
              lambda *_, **__: None)  # fmt: skip
    ask = QUESTIONS.get(getattr(spec.reward.model, "scale", ""))
    opened = open_reward(job, spec, RewardSettings(stage.how, "float32", 9999, ask))
    alone = [opened.reward([(talk(EN[n]), DE[n])])[0].value for n in range(2)]
    assert values == pytest.approx(alone, abs=1e-4)
    assert outcome.stats["by_language"]["de"]["quality"]["n"] == 2
    least = (values[0] + values[1]) / 2
    kept, outcome, _ = run(
        EN, out="less", **knobs, quality={"by": "reward", "reward": reward, "least": least}
    )
    assert [row["quality"] for row in kept] == pytest.approx([max(values)], abs=1e-4)
    assert outcome.rows["de"].dropped == {"low_quality": 1}


@pytest.mark.parametrize(
    ("quality", "match"),
    [
        ({"by": "reward"}, "go together"),
        ({"reward": "rater"}, "go together"),
        ({"by": "back", "least": 101}, "from 0 to 100"),
    ],
)
def test_a_quality_that_cannot_be_is_refused(quality, match):
    with pytest.raises(ValidationError, match=match):
        Quality(**quality)


def test_a_reward_of_answers_does_not_rate_translations():
    for name, match in (("classifier", "says nothing of a translation"), ("nobody", "nobody")):
        stage = Translate(quality={"by": "reward", "reward": name})
        with pytest.raises(RecipeError, match=match):
            stage.plan_slices(scope(stage))


def test_without_quality_there_is_no_column(run):
    rows, _, _ = run(EN)
    assert "quality" not in rows[0]
    assert "quality" not in Translate().model_dump()

"""Recipes: what loads, and what a person is told about what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.artifacts.resources import recipes, shipped
from factory.errors import RecipeError
from factory.planning.recipe import Recipe, load
from tests.support.stand_ins import UNSAID

PACKAGED = sorted(recipes())

SMALL = """\
name: small
org: me
languages: [no, da]
models:
  policy: org/policy@v2
stages:
  prompts: {source: "p-{language}.jsonl"}
  generate: {n: 2}
"""


@pytest.fixture
def saved(tmp_path):
    """Write a recipe file and give its path."""

    def save(text: str, name: str = "r.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return save


@pytest.fixture
def refused(saved):
    """What is said of a recipe that cannot be: one line what, one line what to do."""

    def refuse(text: str, *overrides: str) -> str:
        with pytest.raises(RecipeError) as raised:
            load(saved(text), overrides)
        error = raised.value
        assert error.what
        assert error.fix
        assert "\n" not in error.what + error.fix
        assert error.exit_code == 1
        return error.what

    return refuse


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_recipe_loads(name):
    loaded = load(name, UNSAID.get(name, ()))
    assert loaded.packaged
    assert loaded.recipe.name == name
    assert loaded.recipe.slices()


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_recipe_comes_back_from_its_own_dump(name):
    recipe = load(name, UNSAID.get(name, ())).recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json", by_alias=True)) == recipe


def test_no_and_da_are_norwegian_and_danish(saved):
    assert load(saved(SMALL)).recipe.languages == ("no", "da")


def test_a_model_may_be_written_as_name_and_revision(saved):
    policy = load(saved(SMALL)).recipe.models["policy"]
    assert (policy.name, policy.revision) == ("org/policy", "v2")
    plain = load(saved(SMALL.replace("@v2", ""))).recipe.models["policy"]
    assert (plain.name, plain.revision) == ("org/policy", "main")


def test_files_are_looked_for_beside_the_recipe(saved, tmp_path):
    assert load(saved(SMALL)).file("demo/x.jsonl") == tmp_path / "demo" / "x.jsonl"


def test_a_recipe_cannot_be_changed_once_it_is_loaded(saved):
    recipe = load(saved(SMALL)).recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 5


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("org: me", "orgg: me", "r.yaml:2: the recipe has no key 'orgg' (did you mean 'org'?)"),
        (
            "{n: 2}",
            "{n: 2, temprature: 1}",
            "r.yaml:8: stages.generate has no key 'temprature' (did you mean 'temperature'?)",
        ),
        (
            "{n: 2}",
            "{how: {shards: 2}}",
            "r.yaml:8: stages.generate.how has no key 'shards' (did you mean 'shard'?)",
        ),
        (
            "  generate:",
            "  generated:",
            "r.yaml:8: stages has no stage 'generated' (did you mean 'generate'?)",
        ),
        (
            "org/policy@v2",
            "{name: org/policy, revison: v2}",
            "r.yaml:5: models.policy has no key 'revison' (did you mean 'revision'?)",
        ),
        (
            "[no, da]",
            "[no, dannish]",
            "r.yaml:3: languages: unknown language 'dannish' (did you mean 'da'?)",
        ),
        (
            "{n: 2}",
            "{model: polcy}",
            "r.yaml:8: stages.generate names the model 'polcy' (did you mean 'policy'?)",
        ),
    ],
)
def test_an_unknown_word_is_named_with_its_line_and_the_nearest_right_one(refused, old, new, said):
    assert old in SMALL
    assert refused(SMALL.replace(old, new)).startswith(said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("org: me\n", "", "org is missing"),
        ("name: small", "name: a/b", "r.yaml:1: name: "),
        ("name: small", "name: ..", "r.yaml:1: name: "),
        ("[no, da]", "no", "r.yaml:3: languages: "),
        ("[no, da]", "[]", "r.yaml:3: languages: "),
        ("[no, da]", "[da, da]", "r.yaml:3: languages: a language is there twice"),
        ("[no, da]", "[[da]]", "r.yaml:3: languages: unknown language"),
        ("{n: 2}", "{n: 0}", "r.yaml:8: stages.generate.n: "),
        ("{n: 2}", "{n: two}", "r.yaml:8: stages.generate.n: "),
        ("{n: 2}", "{n: 1.5}", "r.yaml:8: stages.generate.n: "),
        ("{n: 2}", "{temperature: 1e999}", "r.yaml:8: stages.generate.temperature: "),
        ("{n: 2}", "{dtype: int8}", "r.yaml:8: stages.generate.dtype: "),
        ("{n: 2}", "[1, 2]", "r.yaml:8: stages.generate: "),
        ('{source: "p-{language}.jsonl"}', "{}", "r.yaml:7: stages.prompts.source is missing"),
        ("org/policy@v2", "org-policy", "r.yaml:5: models.policy: 'org-policy' is not of the form"),
        ("org/policy@v2", "{revision: v2}", "r.yaml:5: models.policy"),
        ("org/policy@v2", "{name: o/p, step: x}", "r.yaml:5: models.policy"),
        ("org/policy@v2", "{step: reward}", "r.yaml:8: stages.generate needs the stage 'reward'"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_named_with_its_line(refused, old, new, said):
    assert old in SMALL
    what = refused(SMALL.replace(old, new))
    assert what.startswith(said) or what.endswith(said)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{n: 2}", '{n: "2"}'),
        ("{n: 2}", "{n: true}"),
        ("{n: 2}", '{temperature: "1"}'),
        ("name: small", "name: small\nprivate: yes"),
        ("name: small", "name: small\nprivate: 1"),
    ],
)
def test_a_number_is_no_text_and_only_true_and_false_are_booleans(refused, old, new):
    refused(SMALL.replace(old, new))


@pytest.mark.parametrize("source", ["p-{lang}.jsonl", "p-{}.jsonl", "p-{language", "{language.x}"])
def test_a_source_with_another_placeholder_is_named_with_its_line(refused, source):
    what = refused(SMALL.replace("p-{language}.jsonl", source))
    assert what.startswith("r.yaml:7: stages.prompts")


@pytest.mark.parametrize(
    ("text", "stage", "kind"),
    [
        (
            SMALL.replace('prompts: {source: "p-{language}.jsonl"}', "pair: {}"),
            "generate",
            "prompts",
        ),
        (SMALL + "  pair: {}\n", "pair", "scores"),
        (SMALL + "  dpo: {}\n", "dpo", "pairs"),
        (SMALL + "  arena: {of: [policy]}\n", "arena", "questions"),
    ],
)
def test_a_kind_of_row_that_nothing_makes_is_named(refused, text, stage, kind):
    assert f"stages.{stage} reads {kind}, and no stage before it makes any" in refused(text)


def test_a_causal_model_gives_no_rewards(refused):
    text = SMALL + "  score: {reward: policy}\n"
    assert refused(text) == "r.yaml:9: stages.score: the model 'policy' gives no rewards"


def test_an_adapter_in_a_language_without_pairs_is_named(refused):
    reward = "models:\n  reward: {kind: classifier, name: org/reward}"
    text = SMALL.replace("models:", reward) + "  score: {}\n  pair: {}\n  dpo: {each: [all, es]}\n"
    assert refused(text).startswith("r.yaml:12: stages.dpo.each names 'es'")


def test_a_batch_that_the_micro_batch_does_not_divide_is_named(refused):
    reward = "models:\n  reward: {kind: classifier, name: org/reward}"
    text = SMALL.replace("models:", reward) + "  score: {}\n  pair: {}\n"
    text += "  dpo: {batch: 10, how: {micro_batch: 4}}\n"
    assert refused(text).startswith("r.yaml:12: stages.dpo: batch 10 is not a multiple")


@pytest.mark.parametrize("text", ["", "# nothing\n", "[1, 2]", "just words"])
@pytest.mark.parametrize("overrides", [(), ("name=x",), ("stages.generate.n=2",)])
def test_a_file_that_holds_no_recipe_is_an_error_also_with_overrides(refused, text, overrides):
    refused(text, *overrides)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        SMALL + "name: again\n",
        SMALL.replace("org: me", "org: !x me"),
        SMALL.replace("models:", 'models:\n  "a\\nb": {x: 1}'),
        SMALL.replace("org: me", 'org: "a\\nb"'),
        SMALL.replace("[no, da]", '["a\\nb"]'),
    ],
)
def test_whatever_is_wrong_is_said_in_one_line(refused, text):
    refused(text)


@pytest.mark.parametrize("name", ["nowhere.yaml", "no/where.yml"])
def test_a_missing_file_is_an_error(name):
    with pytest.raises(RecipeError, match=f"no recipe at {name}"):
        load(name)


def test_an_unknown_packaged_recipe_is_an_error_with_the_nearest():
    with pytest.raises(RecipeError, match=r"no recipe called 'dmo' \(did you mean 'demo'\?\)"):
        load("dmo")


def test_a_recipe_that_is_not_text_is_an_error(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not text in UTF-8"):
        load(str(tmp_path / "r.yaml"))


# extends


def test_a_child_changes_what_it_names_and_keeps_the_rest(saved):
    saved(SMALL + "  questions: {source: q.jsonl}\n", "parent.yaml")
    child = load(saved("extends: parent.yaml\nname: child\nstages: {generate: {top_p: 0.9}}\n"))
    stages = child.recipe.stages
    assert child.recipe.name == "child"
    assert (stages.generate.n, stages.generate.top_p) == (2, 0.9)
    assert stages.questions.source == "q.jsonl"


def test_a_list_is_replaced_whole(saved):
    saved(SMALL, "parent.yaml")
    child = load(saved("extends: parent.yaml\nlanguages: [en]\n"))
    assert child.recipe.languages == ("en",)


def test_null_takes_away_what_the_parent_had(saved):
    saved(SMALL + "license: mit\n", "parent.yaml")
    text = "extends: parent.yaml\nlicense: null\nstages: {generate: {n: null}}\n"
    recipe = load(saved(text)).recipe
    assert recipe.license is None
    assert recipe.stages.generate.n == 64
    assert "generate" in recipe.steps()
    recipe = load(saved("extends: parent.yaml\nstages: {generate: null}\n")).recipe
    assert list(recipe.steps()) == ["prompts"]


@pytest.mark.parametrize("key", ["name", "org"])
@pytest.mark.parametrize("value", ["a--b", "a..b", "a-", "a.", "-a", "a/b"])
def test_a_name_that_no_hub_takes_is_refused(refused, key, value):
    assert refused(SMALL, f"{key}={value}").startswith(f"--set {key}: {key}: ")


def test_a_name_that_is_too_long_for_the_title_of_a_collection_is_refused(refused, saved):
    from factory.hub.collection import title

    assert "has 55 characters" in refused(SMALL, f"name={'n' * 55}")
    assert len(title(load(saved(SMALL), [f"name={'n' * 54}"]).recipe)) == 60


def test_gold_without_gold_answers_is_refused(refused, saved):
    gold = "stages.pair={gold: true}"
    more = ["stages.score={}", "models.reward={kind: classifier, name: o/r}", gold]
    assert "no answer is gold" in refused(SMALL, *more)
    load(saved(SMALL), [*more, "stages.prompts.columns={gold: output}"])


READ = """\
extends: parent.yaml
stages:
  prompts: {source: theirs.jsonl, split: all, columns: {prompt: text}, where: {a: 1}, first: 3}
  preferences: {from: {source: org/pairs, config: de, columns: {chosen: good}}}
  pair: {from: {source: org/ours, columns: {chosen: good}}}
  generate: null
"""


@pytest.mark.parametrize(
    ("prompts", "source", "columns"),
    [
        ("{preset: helpsteer3}", "nvidia/HelpSteer3", {"messages": "context"}),
        ("{source: mine.jsonl}", "mine.jsonl", {}),
        ("{from: mine.jsonl}", "mine.jsonl", {}),
        ("{from: {source: mine.jsonl, columns: {prompt: q}}}", "mine.jsonl", {"prompt": "q"}),
        ("{columns: {id: uid}}", "theirs.jsonl", {"prompt": "text", "id": "uid"}),
    ],
)
def test_another_source_replaces_how_the_parents_is_read(saved, prompts, source, columns):
    saved(SMALL, "parent.yaml")
    saved(READ, "child.yaml")
    text = f"extends: child.yaml\nname: third\nstages: {{prompts: {prompts}}}\n"
    stage = load(saved(text)).recipe.steps()["prompts"]
    assert (stage.source, stage.columns, stage.first) == (source, columns, 3)
    kept = "columns" in prompts and "from" not in prompts
    assert (stage.split == "all", bool(stage.where)) == (kept, kept)


def test_another_source_under_from_replaces_how_the_parents_is_read(saved):
    saved(SMALL, "parent.yaml")
    saved(READ, "child.yaml")
    text = (
        "extends: child.yaml\nname: third\nstages: {pair: {from: {source: org/new}}, "
        "preferences: {source: org/new}}\n"
    )
    steps = load(saved(text)).recipe.steps()
    assert (steps["pair"].from_.source, steps["pair"].from_.columns) == ("org/new", {})
    preferences = steps["preferences"]
    assert (preferences.source, preferences.config, preferences.columns) == ("org/new", None, {})


def test_a_source_on_the_command_line_replaces_how_the_recipes_is_read(saved):
    saved(SMALL, "parent.yaml")
    path = saved(READ)
    by_preset = load(path, ["stages.prompts.preset=helpsteer3"]).recipe.steps()["prompts"]
    assert (by_preset.source, by_preset.split) == ("nvidia/HelpSteer3", "train")
    both = ["stages.prompts.columns.id=uid", "stages.prompts.source=mine.jsonl"]
    for overrides in (both, both[::-1]):
        stage = load(path, overrides).recipe.steps()["prompts"]
        assert stage.source == "mine.jsonl" and stage.columns["id"] == "uid"


def test_a_grandchild_extends_its_child(saved):
    saved(SMALL, "parent.yaml")
    saved("extends: parent.yaml\nseed: 1\norg: a\n", "child.yaml")
    recipe = load(saved("extends: child.yaml\norg: b\n")).recipe
    assert (recipe.name, recipe.seed, recipe.org) == ("small", 1, "b")


def test_an_error_in_the_parent_is_placed_in_the_parent(refused, saved):
    saved(SMALL.replace("n: 2", "n: none"), "parent.yaml")
    assert refused("extends: parent.yaml\n").startswith("parent.yaml:8: stages.generate.n")


def test_an_error_in_the_child_is_placed_in_the_child(refused, saved):
    saved(SMALL, "parent.yaml")
    text = "extends: parent.yaml\n\nstages:\n  generate: {n: none}\n"
    assert refused(text).startswith("r.yaml:4: stages.generate.n")


def test_a_circle_of_recipes_is_refused(refused, saved):
    saved("extends: r.yaml\n", "other.yaml")
    assert "extends itself" in refused("extends: other.yaml\n")
    assert "extends itself" in refused("extends: r.yaml\n")


@pytest.mark.parametrize("parent", ["absent.yaml", "''", "null", "[a]", "."])
def test_a_missing_parent_is_named_with_its_line(refused, parent):
    assert refused(f"name: x\nextends: {parent}\n").startswith("r.yaml:2: no recipe at")


def test_a_packaged_recipe_is_extended_by_its_name_from_anywhere(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "extends: smoke\nname: mine\norg: lab\nstages: {questions: {source: own.jsonl}}\n"
    )
    (tmp_path / "own.jsonl").write_text("")
    loaded = load(str(tmp_path / "mine.yaml"))
    assert loaded.recipe.models["policy"].name == "local/tiny-random-llama"
    assert loaded.extends == (("local", "demo"), ("local", "smoke")) and not loaded.packaged
    assert loaded.file("own.jsonl").parent == tmp_path, "beside the recipe, if it is there"
    assert loaded.file("demo/prompts-en.jsonl").is_file(), "else beside the one that names it"
    assert loaded.file("nowhere.jsonl").parent == tmp_path


# --set


def test_an_override_goes_over_the_file(saved):
    changed = load(saved(SMALL), ["stages.generate.n=8", "languages=[no]", "seed=3"]).recipe
    assert (changed.stages.generate.n, changed.languages, changed.seed) == (8, ("no",), 3)


def test_an_override_makes_what_it_needs_on_the_way(saved):
    overrides = ["stages.generate.how.shard=3", "stages.questions.source=q.jsonl"]
    stages = load(saved(SMALL), overrides).recipe.stages
    assert stages.generate.how.shard == 3
    assert stages.questions.source == "q.jsonl"


def test_an_override_may_hold_an_equals_sign_and_may_be_null(saved):
    recipe = load(saved(SMALL), ["description=a=b", "stages.generate=null"]).recipe
    assert recipe.description == "a=b"
    assert list(recipe.steps()) == ["prompts"]


def test_the_last_of_two_overrides_wins(saved):
    assert load(saved(SMALL), ["seed=1", "seed=2"]).recipe.seed == 2


def test_an_override_without_an_equals_sign_is_refused(refused):
    assert refused(SMALL, "stages.generate.n") == "--set stages.generate.n: no '='"


@pytest.mark.parametrize(
    "path", ["name.x", "languages.0", "stages.generate.n.x", "models.policy.x"]
)
def test_an_override_below_what_holds_no_keys_is_refused(refused, path):
    assert refused(SMALL, f"{path}=1").startswith(f"--set {path}=1: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.generate.n=none", "--set stages.generate.n: stages.generate.n: "),
        ("stages.generate.m=1", "--set stages.generate.m: stages.generate has no key 'm'"),
        ("stages.generate=[1", "--set:1: not YAML"),
        ("=1", "--set "),
        ("stages.generat.n=1", "--set stages.generat.n: stages has no stage 'generat'"),
    ],
)
def test_an_error_in_an_override_is_placed_there(refused, override, said):
    assert refused(SMALL, override).startswith(said)


def test_a_path_with_a_suffix_is_never_a_packaged_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert load("demo").packaged
    with pytest.raises(RecipeError, match=r"no recipe at demo\.yaml"):
        load("demo.yaml")


def test_a_recipe_knows_what_it_extends(tmp_path):
    (tmp_path / "a.yaml").write_text(
        (shipped("recipes") / "demo.yaml").read_text().replace("name: demo", "name: first")
    )
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nname: second\norg: lab\n")
    (tmp_path / "c.yaml").write_text("extends: b.yaml\nname: third\n")
    assert load(str(tmp_path / "c.yaml")).extends == (("local", "first"), ("lab", "second"))
    assert load("demo").extends == ()

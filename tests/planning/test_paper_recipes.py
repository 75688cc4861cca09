"""The recipes of the papers, each planned against a hub that has everything they name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts import checkpoints
from factory.artifacts.manifest import License, read_manifest
from factory.artifacts.resources import recipes
from factory.artifacts.workdir import Home
from factory.engines import chat_template
from factory.errors import Check, RecipeError
from factory.execution import checks, record, resolve, run
from factory.execution.log import LogReporter
from factory.localhub.launcher import Connection
from factory.planning.lock import Lock
from factory.planning.plan import State, Step
from factory.planning.recipe import LoadedRecipe, load
from factory.stage.inputs import Need, StepInput
from tests.support import stand_ins
from tests.support.builders import by_name
from tests.support.stand_ins import UNSAID

FOLDERS = ("croco", "icr", "rewards")
PAPERS = sorted(name for name, path in recipes().items() if path.parent.name in FOLDERS)
SEVEN = ["da", "nl", "en", "fr", "de", "it", "es"]
FOUR = ["gl", "ga", "mt", "cy"]
DPO, SFT, ONLINE = ([f"{stage}[{code}]" for code in SEVEN] for stage in ("dpo", "sft", "online"))
DPO_OF_FOUR, SFT_OF_FOUR = ([f"{stage}[{code}]" for code in FOUR] for stage in ("dpo", "sft"))
TRAINED: dict[str, list[str]] = {
    "eurollm-9b-checkpoints": DPO,
    "eurollm-9b-min": DPO,
    "eurollm-9b-q1": DPO,
    "from-published": DPO,
    "llama-3-icr": ["dpo[all]", "dpo-2[all]"],
    "llama-3-icr-x-alpaca-eval": ["dpo[all]", "dpo-2[all]"],
    "reuse-your-rewards": [],
    "eurollm-9b-as-published-low-resource-sft": SFT_OF_FOUR,
    **{
        f"{model}{variant}": trained
        for model in ("eurollm-9b", "tiny-aya")
        for variant, trained in {
            "": DPO,
            "-all-lang": ["dpo[all]", "dpo[all_lang]"],
            "-as-published": DPO,
            "-as-published-all-lang": ["dpo[all_lang]"],
            "-as-published-low-resource": DPO_OF_FOUR,
            "-low-resource": DPO_OF_FOUR,
            "-low-resource-sft": SFT_OF_FOUR,
            "-off-policy": DPO,
            "-online": ONLINE,
            "-sft": SFT,
        }.items()
    },
}
# corrected, and what it corrects
CORRECTED = [
    ("eurollm-9b", "eurollm-9b-as-published"),
    ("eurollm-9b-all-lang", "eurollm-9b-as-published-all-lang"),
    ("tiny-aya", "tiny-aya-as-published"),
    ("tiny-aya-all-lang", "tiny-aya-as-published-all-lang"),
]


@cache
def loaded(name: str) -> LoadedRecipe:
    own = Path(f"{name}.yaml")  # beside files that are on no hub
    return load(str(own) if own.exists() else name, UNSAID.get(name, ()))


@pytest.fixture(scope="module")
def world(connection: Connection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A hub with a stand-in of everything, in a directory where locks may be written."""
    from huggingface_hub import constants

    from factory.hub.client import Hub

    root = tmp_path_factory.mktemp("world")
    before, here = constants.HF_HUB_CACHE, Path.cwd()
    constants.HF_HUB_CACHE = str(root / "cache")
    os.chdir(root)
    hub = Hub(connection.url, connection.token)
    stand_ins.publish(hub._api, root / "repos", PAPERS)
    stand_ins.files(root)
    yield hub
    os.chdir(here)
    constants.HF_HUB_CACHE = before


@cache
def pinned(name: str, hub: Any) -> Lock:
    pins, absent = resolve.resolve(loaded(name), hub, Home(Path("home")), None)
    assert not absent
    return pins


def planned(name: str, hub: Any) -> list[Step]:
    return resolve.plan(loaded(name), pinned(name, hub), hub, Home(Path("home"))).steps


def findings(name: str, hub: Any) -> list[Check]:
    """What is found in the tokenizers of a recipe: in one home, so that what recipes have in
    common is looked at once."""
    return checks.check(loaded(name), pinned(name, hub), hub, Home(Path("home")))


def test_every_paper_recipe_is_expected_here() -> None:
    assert sorted(TRAINED) == PAPERS


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_recipe_is_planned_to_its_end_and_its_tokenizers_keep_the_contract(
    name: str, world: Any
) -> None:
    steps = planned(name, world)
    assert not [
        finding.line()
        for finding in findings(name, world)
        if finding.level == "error" and "OPENAI_BASE_URL" not in finding.line()
    ]
    assert {step.state for step in steps} == {State.RUN}
    assert [s.name for s in steps if s.stage.kind == "adapter"] == TRAINED[name]
    if "arena" not in by_name(steps):
        return
    labels = {made.spec.name.split("/")[1] for made in by_name(steps)["arena"].slices}
    answered = {checkpoints.split_label(label)[0] for label in labels}
    assert len(answered) == len(TRAINED[name]) + 1  # and the model that they were made from


# what is special about a model


def test_tiny_aya_ends_a_turn_with_any_of_three_tokens_and_pays_for_its_preamble(
    world: Any,
) -> None:
    path = world.fetch("CohereLabs/tiny-aya-global", "model", "main")
    tokenizer = chat_template.load_tokenizer(str(path))
    stops = chat_template.read_contract(path)["stop_ids"]
    assert {tokenizer.convert_ids_to_tokens(one) for one in stops} == {
        "<EOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>",
    }  # fmt: skip
    asked = chat_template.prompt_ids(tokenizer, [{"role": "user", "content": "Hi"}])
    assert len(asked) > 300  # counted with every prompt, by factory check and by the trainer
    warned = [one.line() for one in findings("tiny-aya", world)]
    assert any("tiny-aya" in line and "<|END_RESPONSE|>" in line for line in warned), warned


def licenses(name: str, hub: Any, home: Path, *overrides: str) -> dict[str, str]:
    """Under what each repo of a recipe will be, step by step."""
    found = load(name, [*UNSAID.get(name, ()), *overrides])
    pins, _ = resolve.resolve(found, hub, Home(home), None)
    made: dict[str, License] = {}
    for step in resolve.plan(found, pins, hub, Home(home)).steps:
        under: dict[Need, License | None] = {}
        for one in step.slices:
            for need in one.spec.needs:
                if hasattr(need, "step"):
                    under[need] = made[need.step]
                else:
                    place = hub.fetch(need.source.split("@")[0], need.kind, "main")
                    under |= record.stated(found.recipe, [need], {need: record.Place(place)}, {})
        made[step.name] = record.license_of(found.recipe, step, under)
    return {name: license.id for name, license in made.items()}


def test_everything_made_with_tiny_aya_is_for_non_commercial_use(
    world: Any, tmp_path: Path
) -> None:
    found = licenses("tiny-aya-as-published-all-lang", world, tmp_path)
    assert set(found.values()) == {"cc-by-nc-4.0"}


def test_everything_made_with_llama_3_says_so_and_is_named_so(world: Any, tmp_path: Path) -> None:
    assert set(licenses("llama-3-icr", world, tmp_path).values()) == {"llama3"}


def test_a_benchmark_without_a_licence_stops_the_line_before_a_model_is_loaded(
    world: Any, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="unknown licence: CohereLabs/m-ArenaHard"):
        licenses("eurollm-9b", world, tmp_path)
    told = "licenses={CohereLabs/m-ArenaHard-v2.1: apache-2.0}"
    found = licenses("eurollm-9b", world, tmp_path, told)
    assert (found["prompts"], found["questions"]) == ("mit", "apache-2.0")
    assert found["translate"] == found["dpo[da]"] == "gemma"
    order = list(found)
    assert order.index("questions") < order.index("generate")


# as published, and put right


def flat(name: str) -> dict[str, Any]:
    """What a recipe's stages say, as `stage.knob`, how they are run left out."""
    return {
        f"{stage.name}.{knob}": value
        for stage in loaded(name).recipe.steps().values()
        for knob, value in stage.model_dump(mode="json", exclude={"how"}).items()
    }


@pytest.mark.parametrize(("corrected", "published"), CORRECTED)
def test_every_departure_from_the_published_scripts_is_said_and_no_other(
    corrected: str, published: str
) -> None:
    right, theirs = flat(corrected), flat(published)
    # which pools there are beside those of the scripts, and who is trained on them, is an addition
    added = {"pair.pool", "dpo.each"}
    differ = {knob for knob in right if right[knob] != theirs.get(knob)} - added
    said = loaded(corrected).recipe.departures
    assert {at for at in said if "." in at} == differ
    stages = {at for at in loaded(published).recipe.departures if "." not in at}
    assert {at for at in said if "." not in at} == stages


@pytest.mark.parametrize("name", PAPERS)
def test_a_departure_is_at_a_stage_that_the_recipe_has_and_at_a_knob_of_it(name: str) -> None:
    recipe, knobs = loaded(name).recipe, flat(name)
    for at in recipe.departures:
        assert at in knobs if "." in at else at in recipe.steps(), at


def test_a_departure_is_on_the_cards_that_it_concerns(world: Any, tmp_path: Path) -> None:
    found = load("eurollm-9b", ["org=lab", "name=departs"])
    home = Home(tmp_path)
    run.run(found, world, home, LogReporter(quiet=True), until="prompts")
    [path] = tmp_path.glob("work/lab/*/artifact")
    assert set(read_manifest(path).departures) == {"prompts", "prompts.turns"}
    card = (path / "README.md").read_text(encoding="utf-8")
    assert "| prompts.turns | Later turns are part of what was asked" in card


# the chain of recipes


def test_an_ablation_of_pairs_reuses_everything_up_to_the_scores(world: Any) -> None:
    base = by_name(planned("eurollm-9b", world))
    for name in ("eurollm-9b-q1", "eurollm-9b-min", "eurollm-9b-all-lang", "eurollm-9b-sft"):
        other = by_name(planned(name, world))
        for step in ("prompts", "translate", "questions", "generate", "score"):
            assert other[step].fingerprint == base[step].fingerprint, (name, step)


def test_round_two_draws_from_the_adapter_of_round_one_and_goes_on_with_it() -> None:
    recipe = loaded("llama-3-icr").recipe
    of = {spec.step: spec for _, spec in recipe.slices()}
    assert of["generate"].need("adapter") is None
    assert of["generate-2"].need("adapter") == StepInput("adapter", "dpo[all]", "all")
    assert of["dpo-2[all]"].need("start") == StepInput("start", "dpo[all]", "all")
    score = of["score-2"]
    assert score.need("adapter") == StepInput("adapter", "dpo[all]", "all")
    assert score.need("reference").source.endswith("8B-SFT@main")  # type: ignore[union-attr]
    again = load("llama-3-icr", [*UNSAID["llama-3-icr"], "models.reward-2.reference=policy"])
    [score] = [s for _, s in again.recipe.slices() if s.name == "de" and s.step == "score-2"]
    assert score.need("reference").source.endswith("SFT-DPO@main")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", sorted(UNSAID))
def test_what_nobody_published_is_asked_for_by_name(name: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load(name)
    for knob in ("lr", "batch", "epochs", "beta", "loss.sft"):
        assert f"stages.dpo.{knob} (" in raised.value.what
        assert f"--set stages.dpo.{knob}=" in raised.value.fix
    with pytest.raises(RecipeError, match=r"leaves to you: stages\.dpo\.loss\.sft \("):
        load(name, [one for one in UNSAID[name] if "loss" not in one])


def test_reuse_your_rewards_is_a_matrix_of_models_and_languages() -> None:
    recipe = loaded("reuse-your-rewards").recipe
    cells = [spec.name for stage, spec in recipe.slices() if stage.name == "transfer"]
    models = ("reward-en", "published")
    assert set(cells) == {f"{code}/{one}" for code in recipe.languages for one in models}


def test_what_is_required_is_a_path_and_a_reason(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\norg: me\nrequired: [stages.dpo.lr]\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:3: required holds a path and a reason"):
        load(str(tmp_path / "r.yaml"))


def test_a_recipe_is_found_by_name_whichever_folder_it_lies_in() -> None:
    names = [path.stem for path in recipes().values()]
    assert len(set(names)) == len(names)
    assert load("tiny-aya").path.parent.name == "croco"

"""What may be said of a thing made from others: the table, the rule, and who settles the rest."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifacts import licenses
from factory.artifacts.manifest import License
from factory.errors import InputError, RecipeError
from factory.execution import record
from factory.planning.plan import plan
from factory.stage.inputs import ExternalInput
from factory.stage.job import Place
from tests.support.builders import by_name, demo, done, lock_of, walked

FREE = [name for name, terms in licenses.TABLE.items() if terms.kind == "permissive"]


def settle(*ids: str | None, said: License | str | None = None, **more: str) -> str:
    inputs = [(f"input-{n}", License(id=i) if i else None) for n, i in enumerate(ids)]
    said = License(id=said) if isinstance(said, str) else said
    where = {"repo": "org/it", "kind": "pairs", **more}
    return licenses.settle(inputs=inputs, declared=said, **where).id


@pytest.mark.parametrize(
    ("inputs", "made"),
    [
        (["apache-2.0"], "apache-2.0"),
        (["mit", "apache-2.0", "cc0-1.0"], "apache-2.0"),
        (["cc-by-4.0", "mit"], "cc-by-4.0"),
        (["cc-by-sa-4.0", "apache-2.0"], "cc-by-sa-4.0"),
        (["cc-by-sa-3.0", "cc-by-sa-4.0"], "cc-by-sa-4.0"),  # a later version may be taken
        (["cc-by-nc-4.0", "apache-2.0"], "cc-by-nc-4.0"),  # Aya's weights, Skywork's scores
        (["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        (["gemma", "apache-2.0"], "gemma"),  # TranslateGemma's translations, EuroLLM's answers
        (["llama3.1", "mit"], "llama3.1"),
        (["gpl-3.0", "agpl-3.0"], "agpl-3.0"),
    ],
)
def test_the_strictest_input_decides(inputs: list[str], made: str) -> None:
    for order in itertools.permutations(inputs):
        assert settle(*order) == made


@pytest.mark.parametrize(
    "inputs",
    [
        ["gemma", "cc-by-nc-4.0"],
        ["gemma", "llama3.1"],
        ["llama3", "llama3.1"],
        ["cc-by-sa-4.0", "cc-by-nc-4.0"],
        ["cc-by-sa-4.0", "gpl-3.0"],
        ["cc-by-nd-4.0"],
        ["cc-by-nc-nd-4.0", "mit"],
    ],
)
def test_what_does_not_go_together_is_a_conflict_that_names_the_inputs(inputs: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"input-0 \(") as raised:
        settle(*inputs)
    assert "because" in raised.value.fix
    reasoned = License(id="apache-2.0", because="we have it in writing")
    assert settle(*inputs, said=reasoned) == "apache-2.0"


def test_an_input_without_a_known_licence_is_a_conflict() -> None:
    for unknown in (None, "unknown", "cc", "my-own"):
        with pytest.raises(RecipeError, match="unknown licence: input-1"):
            settle("mit", unknown)
        with pytest.raises(RecipeError, match="unknown licence"):
            settle("mit", unknown, said="mit")
    with pytest.raises(RecipeError, match="no input states"):
        settle()


def test_the_recipe_may_be_stricter_but_not_laxer() -> None:
    assert settle("mit", said="cc-by-nc-4.0") == "cc-by-nc-4.0"
    assert settle("cc-by-nc-4.0", said="cc-by-nc-sa-4.0") == "cc-by-nc-sa-4.0"
    with pytest.raises(RecipeError, match=r"cannot be under apache-2\.0: .* \(cc-by-nc-4\.0\)"):
        settle("mit", "cc-by-nc-4.0", said="apache-2.0")
    with pytest.raises(RecipeError, match=r"did you mean 'apache-2\.0'"):
        settle("mit", said="apache2.0")


def test_other_terms_need_a_name_and_a_link_and_go_with_themselves_alone() -> None:
    mine = License(id="other", name="Mine", link="https://example.org")
    assert not licenses.is_known(License(id="other"))
    made = licenses.settle("org/it", "pairs", [("a", mine), ("b", License(id="mit"))], None)
    assert made == mine
    yours = License(id="other", name="Yours", link="https://example.org")
    with pytest.raises(RecipeError, match="conflict"):
        licenses.settle("org/it", "pairs", [("a", mine), ("b", yours)], None)


def test_a_model_made_from_llama_says_so_in_its_name() -> None:
    with pytest.raises(RecipeError, match="begin with 'Llama'"):
        settle("llama3.1", kind="adapter", repo="org/croco-dpo-all")
    assert settle("llama3.1", kind="adapter", repo="org/Llama-croco-dpo-all") == "llama3.1"
    with pytest.raises(RecipeError, match="begin with 'Llama 3'"):
        settle("llama3", kind="model", repo="org/Llama-croco")
    assert settle("llama3", kind="model", repo="org/llama-3-croco") == "llama3"
    assert settle("llama3.1", kind="pairs", repo="org/croco-pairs") == "llama3.1"


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(licenses.TABLE)), min_size=1, max_size=4))
def test_what_comes_out_is_allowed_by_every_input_and_its_order_is_nothing(ids: list[str]) -> None:
    try:
        made = settle(*ids)
    except RecipeError:
        with pytest.raises(RecipeError):
            settle(*reversed(ids))
        return
    assert made == settle(*reversed(ids))
    assert made in ids
    assert all(licenses._allows(License(id=one), License(id=made)) for one in ids)
    assert all(settle(*ids, free) == made for free in ("cc0-1.0",))
    assert settle(made) == made


@pytest.mark.parametrize("one", sorted(licenses.TABLE))
def test_every_row_of_the_table_goes_into_a_header(one: str) -> None:
    assert licenses.header(License(id=one)) == {"license": one}
    assert licenses.terms(License(id=one)).name


def test_a_card_states_its_licence() -> None:
    def stated(header: str) -> License | None:
        return licenses.stated_license(f"---\n{header}\n---\n# It\n")

    assert stated("license: MIT") == License(id="mit")
    assert stated("license: [mit, apache-2.0]") == License(id="apache-2.0")
    assert stated("license: [gemma, llama3]") is None
    assert stated("license: unknown") is None
    assert stated("tags: [x]") is None
    assert licenses.stated_license("# no metadata") is None
    link = "license: other\nlicense_name: x\nlicense_link: https://example.org"
    assert stated(link) == License(id="other", name="x", link="https://example.org")
    assert stated("license: other") is None
    with pytest.raises(InputError, match="not valid YAML"):
        stated("license: [")


def test_where_the_licence_of_an_input_comes_from(tmp_path: Path) -> None:
    recipe = demo("license=mit", "models.policy=org/base", "licenses.org/base=gemma")
    lock = lock_of(recipe)
    steps = plan(recipe, lock, walked(recipe, lock))
    there = done(steps)
    step = by_name(steps)["generate"]
    places = {need: Place(tmp_path) for made in step.slices for need in made.spec.needs}
    under = record.stated(recipe, places, places, there)
    by_role = {need.role: license.id for need, license in under.items() if license}
    assert by_role == {"prompts": "mit", "model": "gemma"}  # a manifest, and the recipe
    with pytest.raises(RecipeError, match="cannot be under mit"):
        record.license_of(recipe, step, under)

    need = ExternalInput("model", "org/base@main", "model")
    bare = demo("models.policy=org/base")
    assert record.stated(bare, [need], {need: Place(tmp_path)}, {})[need] is None
    (tmp_path / "README.md").write_text("---\nlicense: llama2\n---\n")
    assert record.stated(bare, [need], {need: Place(tmp_path)}, {})[need] == License(id="llama2")
    own = ExternalInput("source", "prompts-en.jsonl", "dataset")
    assert record.stated(bare, [own], {own: Place(tmp_path)}, {})[own] == License(id="apache-2.0")
    filled = demo("licenses={'prompts-{language}.jsonl': cc-by-4.0}")
    assert record.stated(filled, [own], {own: Place(tmp_path)}, {})[own] == License(id="cc-by-4.0")

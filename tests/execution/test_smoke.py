"""The whole line on the tiny model: made once, then looked at, reused, killed and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import HfApi

from factory.artifacts.manifest import Manifest, read_manifest
from factory.artifacts.resources import shipped
from factory.localhub.launcher import await_end, connect
from tests.conftest import FACTORY, run_factory
from tests.support.browser import chromium
from tests.support.secrets import PLANTED, assert_clean
from tests.support.terminal import clean_environment, on_terminal, plain

pytestmark = pytest.mark.slow

STEPS = [
    "prompts", "translate", "preferences", "questions", "reward", "generate", "score", "pair",
    "best", "sft[all]", "dpo[all]", "dpo[es]", "merge", "arena", "judge",
]  # fmt: skip


@pytest.fixture
def made(smoke: Path) -> Path:
    """A home in which the smoke recipe ran from nothing, undisturbed."""
    return smoke


def plan(home: Path, *arguments: str) -> dict[str, Any]:
    done = run_factory("plan", "smoke", "--json", *arguments, home=home)
    assert done.returncode == 0, done.stderr
    return {step["step"]: step for step in json.loads(done.stdout)}


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy of that home, made once its hub has ended."""
    await_end(made / "hub")
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """The smoke recipe as a file of one's own, beside the files that it reads."""
    shutil.copytree(shipped("recipes") / "demo", tmp_path / "demo")
    for name in ("smoke.yaml", "demo.yaml"):
        shutil.copy(shipped("recipes") / name, tmp_path / name)
    return str(tmp_path / "smoke.yaml")


def manifests(home: Path) -> dict[str, Manifest]:
    """What rests in a home, by step; of several artifacts the newest."""
    paths = home.glob("work/local/*/artifact/factory.json")
    found = [read_manifest(path.parent) for path in sorted(paths, key=lambda p: p.stat().st_mtime)]
    return {manifest.step: manifest for manifest in found}


def test_every_step_ends_with_a_tagged_repo(made: Path) -> None:
    steps = plan(made)
    assert list(steps) == STEPS
    assert {step["state"] for step in steps.values()} == {"reuse"}
    assert all(step["tag"] == f"fp-{step['fingerprint']}" for step in steps.values())
    assert (made / "locks" / "smoke.lock.yaml").is_file(), "of a packaged recipe, in the home"
    assert not list(made.parent.glob("*.lock.yaml"))


def test_rows_in_are_rows_out_and_dropped_at_every_step(made: Path) -> None:
    for manifest in manifests(made).values():
        for record in manifest.slices.values():
            assert record.rows.balanced()
    assert manifests(made)["generate"].rows().out == 3 * 12 * 4


def test_the_time_at_work_is_known_of_every_step_that_works_with_a_model(made: Path) -> None:
    found = manifests(made)
    measured = {name for name, one in found.items() if one.cost.engines}
    assert measured == {
        "translate", "reward", "generate", "score", "sft[all]", "dpo[all]", "dpo[es]", "arena",
        "judge",
    }  # fmt: skip
    for name in measured:
        cost = found[name].cost
        assert 0 < cost.working_seconds <= cost.wall_seconds


def test_what_was_made_is_shown_as_a_table(made: Path) -> None:
    said = (made.parent / "said.txt").read_text()
    for word in ("Rows", "training reward (not independent)", "local/smoke-pair", "Collection",
                 "judge: done in"):  # fmt: skip
        assert word in said


def test_running_again_reuses_everything(made: Path) -> None:
    done = run_factory("run", "smoke", home=made)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": reused,") == len(STEPS)


def test_a_changed_knob_reruns_what_hangs_on_it_and_says_why(made: Path) -> None:
    steps = plan(made, "--set", "stages.pair.rejected.sigma=-1")
    assert {name for name, step in steps.items() if step["state"] == "run"} == {
        "pair", "dpo[all]", "dpo[es]", "merge", "arena", "judge",
    }  # fmt: skip
    assert "rejected.sigma -2.0 -> -1.0" in steps["pair"]["reason"]


def test_what_another_collection_has_is_referred_to(made: Path) -> None:
    with connect(made / "hub") as hub:
        [slug] = [c.slug for c in HfApi(hub.url, token=hub.token).list_collections(owner="local")]
    elsewhere = plan(made, "--set", "org=lab")
    assert {step["state"] for step in elsewhere.values()} == {"run"}
    found = plan(made, "--set", "org=lab", "--set", f"reuse=[{slug}]")
    assert {step["state"] for step in found.values()} == {"reuse"}
    assert found["pair"]["repo"] == "local/smoke-pair"
    assert found["pair"]["reason"].endswith("of local/smoke-pair")


def test_too_few_rows_block_what_needs_them_and_the_line_goes_on(made: Path) -> None:
    steps = plan(made, "--set", "stages.dpo.min_pairs=13")
    assert steps["dpo[es]"]["state"] == "blocked"
    assert "12 of 12 left, 13 needed" in steps["dpo[es]"]["reason"]
    assert steps["dpo[all]"]["state"] == "reuse"
    assert "es/dpo-es" not in steps["arena"]["slices"]


def _samples(home: Path, language: str, **fields: Any) -> pl.DataFrame:
    """All samples of the one artifact of generate that has these fields."""
    [root] = [
        path.parent
        for path in home.glob("work/local/*/artifact/factory.json")
        if (found := read_manifest(path.parent)).stage == "generate"
        and found.fields.items() >= fields.items()
    ]
    return pl.read_parquet(sorted((root / "data" / language).glob("*.parquet")))


def test_more_of_everything_makes_only_what_is_new(
    made: Path, home: Path, recipe: str, tmp_path: Path
) -> None:
    """A fourth language and two more samples: no old row is made again, none is changed, and the
    adapter of a language that was there is not trained again."""
    for kind in ("prompts", "questions"):
        english = (tmp_path / "demo" / f"{kind}-en.jsonl").read_text()
        (tmp_path / "demo" / f"{kind}-da.jsonl").write_text(english)
    wider = ["--set", "languages=[en, es, fr, da]"]
    done = run_factory("run", str(recipe), *wider, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dpo[es]: reused" in done.stdout
    found = manifests(home)
    generated = found["generate"].slices
    assert {n: sum(s.taken_over.values()) for n, s in generated.items()} == {
        "en": 48, "es": 48, "fr": 48, "da": 0,
    }  # fmt: skip
    before = manifests(made)
    for step in ("generate", "score", "pair"):
        for language in ("en", "es", "fr"):
            assert found[step].slices[language].digest == before[step].slices[language].digest
    answered = {n: sum(s.taken_over.values()) for n, s in found["arena"].slices.items()}
    assert {name for name, rows in answered.items() if rows == 24} == {
        "en/policy", "es/policy", "fr/policy", "es/dpo-es",
    }  # fmt: skip

    more = [*wider, "--set", "stages.generate.n=6"]
    done = run_factory("run", str(recipe), *more, "--until", "pair", home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    extended, made_at_once = manifests(home), tmp_path / "fresh"
    assert {sum(s.taken_over.values()) for s in extended["generate"].slices.values()} == {48}
    assert {sum(s.taken_over.values()) for s in extended["score"].slices.values()} == {48}
    old = {(f.path, f.sha256) for f in found["generate"].files if f.path.startswith("data/")}
    assert old < {(f.path, f.sha256) for f in extended["generate"].files}
    done = run_factory("run", str(recipe), *more, "--until", "score", home=made_at_once)
    assert done.returncode == 0, done.stdout + done.stderr
    for language in ("en", "da"):
        key = ["prompt_id", "k", "prompt_hash"]
        one = _samples(home, language, n=6).select(key).sort(key)
        assert one.equals(_samples(made_at_once, language, n=6).select(key).sort(key))
        other = manifests(made_at_once)["score"].slices[language]
        assert extended["score"].slices[language].row_key == other.row_key
        assert extended["score"].slices[language].fingerprint == other.fingerprint


def test_a_language_model_may_judge_instead_and_is_never_asked_twice(home: Path) -> None:
    """The policy, of random weights, judges answers of its own: nothing it says is a verdict."""
    asked = ["--set", "stages.judge.judge=policy", "--set", "stages.judge.ask={max_tokens: 8}"]
    done = run_factory("run", "smoke", *asked, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    found = manifests(home)["judge"]
    assert found.stats["judge_kind"] == "llm" and found.stats["template"]["name"] == "ties"
    assert found.stats["notes"] == ["judges answers of its own (not independent)"]
    assert {record.rows.into for record in found.slices.values()} == {48}
    every = found.stats["comparisons"][0]
    unread = every["verdicts"]["unparseable"]
    assert unread == 144 - 2 * every["verdicts"]["identical"] > 0
    assert every["bounds"]["best"] - every["bounds"]["worst"] == pytest.approx(100 * unread / 144)
    for said in ("Win rate controls", "equal length", "unparsed"):
        assert said in done.stdout
    # more contestants: what was judged stands
    wider = [*asked, "--set", "stages.dpo.each=[all, es, fr]"]
    only = [word for step in ("dpo[fr]", "arena", "judge") for word in ("--only", step)]
    done = run_factory("run", "smoke", *wider, *only, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    slices = manifests(home)["judge"].slices
    taken = {name for name, record in slices.items() if record.taken_over}
    assert taken == slices.keys() - {"fr/dpo-fr"}


def test_a_frozen_lock_holds_until_a_source_changes(
    home: Path, recipe: str, tmp_path: Path
) -> None:
    refused = run_factory("plan", recipe, "--frozen", home=home)
    assert refused.returncode == 1 and "make one with factory lock" in refused.stderr
    pinned = run_factory("lock", recipe, "--json", home=home)
    assert pinned.returncode == 0, pinned.stderr
    assert "local/tiny-random-llama@main" in json.loads(pinned.stdout)["pins"]
    assert (tmp_path / "smoke.lock.yaml").exists()
    again = run_factory("run", recipe, "--frozen", "--until", "prompts", home=home)
    assert again.returncode == 0, again.stderr
    with (tmp_path / "demo" / "prompts-es.jsonl").open("a") as file:
        file.write('{"id": "more", "prompt": "¿Y esto?"}\n')
    refused = run_factory("run", recipe, "--frozen", home=home)
    assert refused.returncode == 1
    assert "demo/prompts-es.jsonl has changed since smoke.lock.yaml was written" in refused.stderr
    assert run_factory("lock", recipe, "--update", home=home).returncode == 0
    assert run_factory("plan", recipe, "--frozen", home=home).returncode == 0


def test_a_prompt_in_other_words_is_answered_anew(home: Path, recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "demo" / "prompts-es.jsonl"
    first, *rest = [json.loads(line) for line in file.read_text().splitlines()]
    first["prompt"] += " Por favor."
    new = {**rest[0], "prompt_id": "one-more", "id": "one-more", "prompt": "¿Y esto?"}
    file.write_text("\n".join(json.dumps(row) for row in (first, *rest, new)))
    done = run_factory(
        "run", recipe, "--set", "languages=[es]", "--set", "stages.dpo=null",
        "--set", "stages.merge=null", "--set", "stages.sft=null",
        "--set", "stages.arena=null", "--set", "stages.judge=null", "--until", "score", home=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("generate", "score"):
        record = manifests(home)[step].slices["es"]
        assert record.rows.out == 13 * 4
        assert sum(record.taken_over.values()) == 11 * 4


def _clients(made: Path, code: str) -> str:
    """Python code run with the environment that `factory hub exec` gives."""
    done = run_factory("hub", "exec", "--", FACTORY[0], "-c", code, home=made)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_datasets_loads_the_pairs_at_their_tag(made: Path) -> None:
    tag = plan(made)["pair"]["tag"]
    code = (
        "from datasets import load_dataset\n"
        f"rows = load_dataset('local/smoke-pair', 'es', split='train', revision={tag!r})\n"
        "print(len(rows), rows[0]['chosen'][0]['role'], sorted(rows.column_names)[:2])"
    )
    assert _clients(made, code).startswith("12 assistant")


def test_datasets_loads_the_cross_lingual_pairs_and_the_best_of_n(made: Path) -> None:
    steps = plan(made)
    code = (
        "from datasets import load_dataset\n"
        f"tags = {{'pair': {steps['pair']['tag']!r}, 'best': {steps['best']['tag']!r}}}\n"
        "for name, tag in tags.items():\n"
        "    repo = f'local/smoke-{name}'\n"
        "    rows = load_dataset(repo, 'all_lang', split='train', revision=tag)\n"
        "    print(len(rows), len(set(rows['id'])), rows[0]['prompt'][0]['role'])\n"
    )
    assert _clients(made, code).splitlines() == ["12 12 user", "12 12 user"]


def test_strategies_are_compared_without_a_publish(made: Path) -> None:
    figure = made.parent / "pairs.png"
    done = run_factory(
        "pairs", "compare", "smoke", "--json", "--figure", str(figure),
        "--strategies", "max:min,max:min_of_2", "--strategies", "max:-2@all_lang-zscore",
        home=made,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["strategy"] for row in found["strategies"]] == [
        "recipe", "max:min", "max:min_of_2", "max:-2@all_lang-zscore",
    ]  # fmt: skip
    assert found["strategies"][0]["overlap"] == 1.0
    assert found["strategies"][3]["rows"] == 12
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert {step["state"] for step in plan(made).values()} == {"reuse"}


def test_peft_loads_the_adapter_on_its_base(made: Path) -> None:
    tag = plan(made)["dpo[all]"]["tag"]
    code = (
        "import json, torch\n"
        "from huggingface_hub import hf_hub_download\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        f"path = hf_hub_download('local/smoke-dpo-all', 'adapter_config.json', revision={tag!r})\n"
        "config = json.load(open(path))\n"
        "name, revision = config['base_model_name_or_path'], config['revision']\n"
        "assert name == 'local/tiny-random-llama' and len(revision) == 40, config\n"
        "base = AutoModelForCausalLM.from_pretrained(name, revision=revision).eval()\n"
        "ids = torch.tensor([[5, 6, 7]])\n"
        "with torch.no_grad():\n"
        "    before = base(ids).logits\n"
        f"    model = PeftModel.from_pretrained(base, 'local/smoke-dpo-all', revision={tag!r})\n"
        "    assert not torch.equal(before, model.eval()(ids).logits)\n"
        "print('changed')"
    )
    assert _clients(made, code) == "changed\n"


# Trains an adapter, lets it and another answer, starts Python three times.
def test_an_adapter_on_the_way_is_evaluated_drawn_and_loaded(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "along.yaml"
    recipe.write_text(
        "extends: smoke\n"
        "stages:\n"
        "  merge: null\n"
        "  dpo: {each: [es], checkpoints: [0.8]}\n"
        "  arena: {of: [policy, dpo@*]}\n"
        "  judge: {model: dpo@*}\n"
    )
    done = run_factory("run", str(recipe), home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    found = manifests(home)
    half, end = (found["arena"].slices[f"es/dpo-es{at}"] for at in ("-at-0.8", ""))
    read = {
        record.checkpoint: record.digest
        for made_of in (half, end)
        for record in made_of.inputs
        if record.role == "adapter"
    }
    assert set(read) == {"0.8", None} and len(set(read.values())) == 2
    assert {row["model"] for row in found["judge"].stats["comparisons"]} == {
        "dpo-es-at-0.8", "dpo-es",
    }  # fmt: skip
    tags = {name: manifest.tag for name, manifest in found.items()}
    repo = f"local/smoke-dpo-es@{tags['dpo[es]']}"
    told = run_factory("card", repo, home=home)
    assert 'subfolder="checkpoints/0.8"' in told.stdout
    told = run_factory("card", f"datasets/local/smoke-verdicts@{tags['judge']}", home=home)
    assert "(checkpoints.png)" in told.stdout
    code = (
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        "found = []\n"
        "for more in ({}, {'subfolder': 'checkpoints/0.8'}):\n"
        "    base = AutoModelForCausalLM.from_pretrained('local/tiny-random-llama')\n"
        f"    model = PeftModel.from_pretrained(base, 'local/smoke-dpo-es', "
        f"revision={tags['dpo[es]']!r}, **more)\n"
        "    with torch.no_grad():\n"
        "        found.append(model.eval()(torch.tensor([[5, 6, 7]])).logits)\n"
        "print(not torch.equal(*found))"
    )
    assert _clients(home, code) == "True\n"
    merged = run_factory(
        "merge", f"{repo}:checkpoints/0.8", "--to", str(tmp_path / "merged"), home=home
    )
    assert merged.returncode == 0, merged.stderr
    absent = run_factory("merge", f"{repo}:checkpoints/0.5", "--to", "elsewhere", home=home)
    assert absent.returncode == 1 and "it has checkpoints/0.8" in absent.stderr


def test_a_released_adapter_is_merged_into_an_ordinary_checkpoint(
    made: Path, tmp_path: Path
) -> None:
    to = tmp_path / "merged"
    tag = plan(made)["dpo[es]"]["tag"]
    done = run_factory("merge", f"local/smoke-dpo-es@{tag}", "--to", str(to), home=made)
    assert done.returncode == 0, done.stderr
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(to)!r})\n"
        f"assert AutoTokenizer.from_pretrained({str(to)!r}).chat_template\n"
        "print(sum(p.numel() for p in model.parameters()) > 0)"
    )
    assert _clients(made, code) == "True\n"
    again = run_factory("merge", f"local/smoke-dpo-es@{tag}", "--to", str(to), home=made)
    assert again.returncode == 1 and "is there already" in again.stderr


def test_a_merged_adapter_names_its_parts(made: Path) -> None:
    stats = manifests(made)["merge"].stats
    assert [part["step"] for part in stats["merged"]] == ["dpo[all]", "dpo[es]"]
    assert stats["probe"]["applied"] and stats["chain"]["load_on"] == "local/tiny-random-llama"


def test_the_reward_model_loads_as_a_classifier(made: Path) -> None:
    tag = plan(made)["reward"]["tag"]
    code = (
        "from transformers import AutoModelForSequenceClassification as A\n"
        f"print(A.from_pretrained('local/smoke-reward', revision={tag!r}).config.num_labels)"
    )
    assert _clients(made, code) == "1\n"


def test_one_collection_holds_every_repo(made: Path) -> None:
    code = (
        "from huggingface_hub import HfApi\n"
        "[found] = [c for c in HfApi().list_collections(owner='local') if 'smoke' in c.title]\n"
        "for item in HfApi().get_collection(found.slug).items: print(item.item_id, '|', item.note)"
    )
    lines = _clients(made, code).splitlines()
    assert len(lines) == len(STEPS)
    assert lines[0].startswith("local/smoke-prompts | prompts: 42 rows, fp-")


def test_a_stranger_reproduces_from_the_collection_alone(made: Path, tmp_path: Path) -> None:
    """On another machine, with nothing but the address of the hub and the slug: the scores are
    made again from the published samples, and they are the same."""
    await_end(made / "hub")
    stranger = tmp_path / "home"
    with connect(made / "hub") as hub:
        [slug] = [c.slug for c in HfApi(hub.url, token=hub.token).list_collections(owner="local")]
        words = ["reproduce", slug, "--from", "score", "--at", hub.url, "--json"]
        done = run_factory(*words, home=stranger, HF_TOKEN=hub.token)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout[done.stdout.index("{\n") :])
        assert list(found) == STEPS[STEPS.index("score") :]
        assert found["score"]["rows"]["en"]["same"] == 48
        assert found["pair"]["same_bytes"] and found["best"]["same_bytes"]
        claims = found["judge"]["claims"]
        assert {claim["metric"] for claim in claims} > {"win_rate"}
        assert {claim["finding"] for claim in claims} <= {"within", "outside"}
        settings = clean_environment(FACTORY_HOME=str(stranger), HF_TOKEN=hub.token)
        shown, code = on_terminal([*FACTORY, *words[:-1]], tmp_path, settings, timeout=300)
        again = " ".join(plain(shown).split())
        assert code == 0 and "Claims of the original" in again, again[-3000:]
        assert "within the intervals measured here" in again
        refused = run_factory("reproduce", slug, "--from", "prompts", home=stranger)
        assert refused.returncode == 1
        assert "was read from a file that was not published" in refused.stderr
    await_end(stranger / "hub")
    # what was published is as it was, and what was made again lies beside it
    again = {m.repo for path in stranger.glob("work/*/*/artifact") if (m := read_manifest(path))}
    assert all(repo.startswith("local-again/smoke-") for repo in again)
    told = run_factory("diff", "local/smoke-score", "local-again/smoke-score", home=stranger)
    assert "identical bytes" in told.stdout


def test_hf_download_works_unchanged(made: Path, tmp_path: Path) -> None:
    done = run_factory(
        "hub", "exec", "--", str(Path(FACTORY[0]).parent / "hf"), "download", "local/smoke-pair",
        "--repo-type", "dataset", "--local-dir", str(tmp_path / "got"), home=made,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got" / "data" / "fr" / "part-00000.parquet").exists()
    assert Manifest.model_validate_json((tmp_path / "got" / "factory.json").read_bytes())


def test_cards_carry_what_the_hub_reads(made: Path) -> None:
    code = (
        "from huggingface_hub import DatasetCard, ModelCard\n"
        "card = ModelCard.load('local/smoke-dpo-all').data\n"
        "print(card.base_model, card.base_model_relation, card.library_name, card.language)\n"
        "print([c['config_name'] for c in DatasetCard.load('local/smoke-arena').data.configs])"
    )
    first, second = _clients(made, code).splitlines()
    assert first == "local/tiny-random-llama adapter peft ['en', 'es', 'fr']"
    assert second == "['en', 'es', 'fr']"


def test_no_artifact_log_or_manifest_holds_a_token_or_a_path(made: Path) -> None:
    said = (made.parent / "said.txt").read_text()
    card = run_factory("card", "datasets/local/smoke-prompts", home=made, **PLANTED)
    assert "# local/smoke-prompts" in card.stdout
    assert_clean(made, said, card.stdout, card.stderr)
    token = (made / "hub" / "token").read_text().strip()
    hidden = [token.encode(), str(made.parent).encode()]
    for path in [*made.glob("work/**/*"), *made.glob("hub/*.log")]:
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in hidden), path
    assert token not in said


def test_another_hub_gets_the_same_line(made: Path, tmp_path: Path) -> None:
    """`--hub URL`: the same code against another endpoint; here a second local hub."""
    from factory.localhub.launcher import connect

    with connect(tmp_path / "remote") as remote:
        done = run_factory(
            "run", "smoke", "--until", "questions", "--hub", remote.url,
            home=tmp_path / "home", HF_TOKEN=remote.token,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "local/smoke-questions at fp-" in done.stdout


def test_a_lock_from_another_hub_is_good_here(made: Path, tmp_path: Path) -> None:
    """Commits are called otherwise on every hub: what counts is the content."""
    locks = tmp_path / "home" / "locks"
    shutil.copytree(made / "locks", locks)
    before = (locks / "smoke.lock.yaml").read_text()
    done = run_factory("run", "smoke", "--until", "questions", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert plan(tmp_path / "home")["reward"]["fingerprint"] == plan(made)["reward"]["fingerprint"]
    assert (locks / "smoke.lock.yaml").read_text() == before


def test_a_lock_that_pins_other_content_stops_the_run(made: Path, tmp_path: Path) -> None:
    text = (made / "locks" / "smoke.lock.yaml").read_text()
    name = "local/tiny-random-llama"
    digest = text.partition(name)[2].partition("digest: ")[2].split()[0]
    (tmp_path / "home" / "locks").mkdir(parents=True)
    (tmp_path / "home" / "locks" / "smoke.lock.yaml").write_text(text.replace(digest, "a" * 64))
    done = run_factory("run", "smoke", home=tmp_path / "home")
    assert done.returncode == 1
    assert f"smoke.lock.yaml pins {name} to content that" in done.stderr


# --- killed, stopped, full -----------------------------------------------------------------


def _start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*FACTORY, *arguments],
        cwd=home.parent,
        env={**os.environ, "FACTORY_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _whole(work: Path) -> int:
    """Finished shards or checkpoints of a step under way."""
    shards = [p for p in work.glob("shards/**/*.parquet") if not p.name.startswith(".")]
    return len(shards) + len(list(work.glob("checkpoints/*/complete")))


def _wait_until_begun(process: subprocess.Popen[str], work: Path) -> None:
    deadline = time.monotonic() + 600  # the steps before it are made first
    while _whole(work) == 0:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


# n large and shards small, so that each step lasts long enough to be killed in its middle
SLOWER = [
    "--set", "stages.generate.how.shard=2", "--set", "stages.score.how.shard=4",
    "--set", "stages.arena.how.shard=2", "--set", "stages.judge.how.shard=1",
    "--set", "stages.dpo.how.save_steps=1", "--set", "stages.reward.how.save_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home in which a step of each kind that is gone on with (shards of texts, checkpoints of a
    training, shards of verdicts) was killed with -9 in its middle."""
    home = tmp_path_factory.mktemp("killed") / "home"
    first = run_factory("run", "smoke", "--until", "questions", *SLOWER, home=home)
    assert first.returncode == 0, first.stderr
    for step in ("generate", "dpo[all]", "judge"):
        fingerprint = plan(home, *SLOWER)[step]["fingerprint"]
        work = home / "work" / "local" / fingerprint
        process = _start(home, "run", "smoke", "--until", step, *SLOWER)
        _wait_until_begun(process, work)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = _whole(work)
        assert kept, "nothing was finished"
        if step != "dpo[all]":
            reason = plan(home, *SLOWER)[step]["reason"]
            assert reason.startswith(f"begun: {kept} of "), reason
        done = run_factory("run", "smoke", "--until", step, *SLOWER, home=home)
        assert done.returncode == 0, done.stderr
    yield home


# Three kills and ten starts of the real program.
def test_killed_in_three_stages_the_line_ends_with_the_same_rows(killed: Path, made: Path) -> None:
    assert {step["state"] for step in plan(killed).values()} == {"reuse"}
    undisturbed, disturbed = manifests(made), manifests(killed)
    assert undisturbed.keys() == disturbed.keys()
    for step, manifest in undisturbed.items():
        other = disturbed[step]
        assert other.fingerprint == manifest.fingerprint
        assert {n: r.rows for n, r in other.slices.items()} == {
            n: r.rows for n, r in manifest.slices.items()
        }, step


def test_a_shard_that_was_done_is_not_done_again(home: Path) -> None:
    more = [*SLOWER, "--set", "seed=7"]
    fingerprint = plan(home, *more)["generate"]["fingerprint"]
    work = home / "work" / "local" / fingerprint
    process = _start(home, "run", "smoke", "--until", "generate", *more)
    _wait_until_begun(process, work)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "interrupted by SIGTERM" in error
    before = {p: p.stat().st_mtime_ns for p in work.glob("shards/**/*.parquet")}
    assert before
    process = _start(home, "run", "smoke", "--until", "generate", *more)
    while len(list(work.glob("shards/**/*.parquet"))) <= len(before):
        assert process.poll() is None
        time.sleep(0.002)
    for path, changed in before.items():
        assert not path.exists() or path.stat().st_mtime_ns == changed
    assert process.wait(timeout=120) == 0


def test_a_second_run_in_the_same_place_is_told_who_is_there(home: Path) -> None:
    more = [*SLOWER, "--set", "seed=8"]
    fingerprint = plan(home, *more)["generate"]["fingerprint"]
    process = _start(home, "run", "smoke", "--until", "generate", *more)
    _wait_until_begun(process, home / "work" / "local" / fingerprint)
    second = run_factory("run", "smoke", "--until", "generate", *more, home=home)
    process.communicate(timeout=120)
    assert process.returncode == 0
    # either it met the first one, or the first one was done by then and there was nothing to do
    assert second.returncode == 0 or f"in use by process {process.pid}" in second.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_in_two_lines_and_nothing_is_half_published(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1800k", "none", str(disk)], check=True)
    try:
        done = run_factory("run", "smoke", home=disk / "home")
        assert done.returncode == 1, done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 2, done.stderr
        assert "space" in lines[0] or "507" in lines[0]
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        again = run_factory("run", "smoke", "--until", "generate", home=disk / "home")
        assert again.returncode == 0, again.stderr
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_results_page_as_a_browser_shows_it(made: Path, tmp_path: Path) -> None:
    """Of the real collection, at the size of a desk and of a phone, light and dark."""
    page = tmp_path / "report.html"
    done = run_factory("report", "smoke", "--to", str(page), home=made)
    assert done.returncode == 0, done.stderr
    assert f"{page}: {len(STEPS)} artifacts of CroCo smoke" in done.stdout
    with connect(made / "hub") as hub:
        [slug] = [c.slug for c in HfApi(hub.url, token=hub.token).list_collections(owner="local")]
    by_slug = run_factory("report", slug, "--to", str(tmp_path / "slug.html"), home=made)
    assert by_slug.returncode == 0, by_slug.stderr
    assert (tmp_path / "slug.html").read_bytes() == page.read_bytes()
    assert f"factory reproduce {slug}" in page.read_text()

    with chromium(tmp_path / "profile") as browser:
        browser.open(page, 1280, 900, "light")
        assert browser.asks("document.querySelectorAll('svg').length") > 60
        assert browser.asks(
            "[...document.querySelectorAll('.panel > svg, .plotted > svg, svg.lineage')]"
            ".every(one => one.getBoundingClientRect().width > 40)"
        )
        broken = browser.asks(
            "[...document.querySelectorAll('a[href^=\"#\"]')]"
            ".map(one => one.getAttribute('href').slice(1))"
            ".filter(id => !document.getElementById(id))"
        )
        assert broken == []
        light = browser.picture()
        at = browser.asks(
            "(document.querySelector('nav a[href=\"#training\"]').click(),"
            " document.documentElement.style.scrollBehavior = 'auto', location.hash)"
        )
        assert at == "#training"
        browser.asks("document.getElementById('theme').click()")
        assert browser.asks("document.documentElement.dataset.theme") == "dark"
        dark_ground = browser.asks("getComputedStyle(document.body).backgroundColor")
        browser.asks("localStorage.clear()")

        browser.open(page, 1280, 900, "dark")
        assert browser.asks("getComputedStyle(document.body).backgroundColor") == dark_ground
        dark = browser.picture()
        assert dark != light

        for width in (390, 700, 900):
            browser.open(page, width, 844, "light")
            assert browser.asks("document.documentElement.scrollWidth") <= width
            assert browser.asks("document.documentElement.scrollHeight") < 30_000
        browser.open(page, 760, 844, "dark", media="print")
        ground = browser.asks("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(255, 255, 255)"
        assert browser.asks("document.documentElement.scrollWidth") <= 760

        browser.open(page, 1280, 900, "light", script=False)
        assert browser.height() > 5_000  # it is all there without a script
        said = browser.log()
        assert said == [], said
        asked = set(browser.requested())
        assert asked == {page.as_uri()}, asked


def test_a_judge_with_a_second_name_is_still_the_training_reward(home: Path) -> None:
    """The repo that the reward model was published to has its content under another name."""
    again = "models.again={kind: classifier, name: local/smoke-reward}"
    done = run_factory(
        "run", "smoke", "--set", again, "--set", "stages.judge.judge=again", home=home
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert manifests(home)["judge"].stats["notes"] == ["training reward (not independent)"]

"""A small hub whose rows a person wrote: prompts in two languages, their pools, pairs, compared
answers and the verdicts of two judges. Made without a model, straight in a store, in a second."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import (
    Cost,
    FileRecord,
    InputRecord,
    License,
    Manifest,
    Rows,
    SliceRecord,
)
from factory.artifacts.schemas import SCHEMAS
from factory.localhub.accounts import Account
from factory.localhub.changes import Put, Words
from factory.localhub.hub import LocalHub
from factory.localhub.refs import MAIN

OWNER = Account("local", "write")
Tables = Mapping[str, Sequence[Mapping[str, Any]]]
PROMPTS = {
    "bread": {"en": "Why does bread dough rise?", "da": "Hvorfor hæver en brøddej?"},
    "tides": {"en": "What causes the tides?", "da": "Hvad skaber tidevandet?"},
    "sleep": {"en": "How can I fall asleep sooner?", "da": "Hvordan falder jeg hurtigere i søvn?"},
}
# By prompt and language: answers with reward, detected language, and how they ended.
POOLS: dict[tuple[str, str], list[tuple[str, float, str, str]]] = {
    ("bread", "en"): [
        ("Yeast eats the sugar in the flour and gives off carbon dioxide. The gluten holds the "
         "bubbles, so the dough swells.", 2.41, "en", "stop"),
        ("Because of yeast.", 0.32, "en", "stop"),
        ("Bread rises since it is warm, and warm air rises, and so the", -0.87, "en", "length"),
        ("Fordi gæren laver luft i dejen.", -1.62, "da", "stop"),
    ],
    ("bread", "da"): [
        ("Gæren omdanner sukker til kuldioxid. Gluten holder på boblerne, og dejen vokser.", 1.97,
         "da", "stop"),
        ("Det gør den, fordi der er gær i.", 0.44, "da", "stop"),
        ("Yeast makes gas, which lifts the dough.", -1.05, "en", "stop"),
        ("Dejen hæver, fordi dejen hæver, fordi dejen", -2.3, "da", "length"),
    ],
    ("tides", "en"): [
        ("The pull of the Moon, and less so of the Sun, on the oceans as the Earth turns.", 1.8,
         "en", "stop"),
        ("Wind.", -1.1, "en", "stop"),
    ],
    ("tides", "da"): [
        ("Månens og Solens tiltrækning, mens Jorden drejer.", 1.5, "da", "stop"),
        ("Vinden over havet.", -0.9, "da", "stop"),
    ],
    ("sleep", "en"): [
        ("Keep the same hours each day, dim the light an hour before, and leave the phone outside "
         "the bedroom.", 2.2, "en", "stop"),
        ("Drink coffee.", -2.0, "en", "stop"),
    ],
    ("sleep", "da"): [
        ("Hold faste tider, dæmp lyset en time før, og lad telefonen blive uden for soveværelset.",
         2.0, "da", "stop"),
        ("Tæl får.", 0.1, "da", "stop"),
    ],
}  # fmt: skip
QUESTIONS = {
    "honey": ("Why can honey be kept for years?", "It does not spoil because it is honey.",
              "Honey holds very little water and is acidic, so that hardly any microbe can grow "
              "in it.", ("model", "model"), "reference"),
    "moon": ("Why does the Moon change shape?", "We see the sunlit half from changing sides as it "
             "circles the Earth.", "Fordi Månen drejer rundt om Jorden, og", ("reference",
             "reference"), "reference"),
    "rain": ("How does rain form?", "Water vapour cools and condenses on dust.", "Vapour rises, "
             "cools, and condenses into droplets that join until they fall.", ("model",
             "reference"), "model"),
}  # fmt: skip
JUDGED = "en/tuned"
SCORES = {JUDGED: {"sst5": 61.0, "squad": 44.0}, "en/policy": {"sst5": 58.5, "squad": 43.0}}
_RATES = [
    {"model": "tuned", "reference": "policy", "language": language, "won": 1, "tied": 1, "lost": 1,
     "unparseable": 0, "shown": "62.0 % [53.0, 71.0]",
     "win_rate": {"rate": 62.0, "low": 53.0, "high": 71.0}}
    for language in ("all", "en")
]  # fmt: skip


def publish(
    hub: LocalHub,
    step: str,
    kind: str,
    tables: Tables,
    reads: Mapping[str, Sequence[tuple[str, Manifest, str]]],
    *,
    stats: Mapping[str, Any] | None = None,
    card: str = "",
    private: bool = False,
    fields: Mapping[str, Any] | None = None,
) -> Manifest:
    """Put an artifact on the hub, at main and at its tag, and return its manifest. `reads` are by
    slice the role, manifest and slice of each input."""
    contents = {}
    for name, rows in tables.items():
        sink = io.BytesIO()
        pq.write_table(
            pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[kind]), sink
        )
        contents[f"data/{name}/part-00000.parquet"] = sink.getvalue()
    slices = {
        name: SliceRecord(
            fingerprint=text_hash(step + name)[:12],
            row_key=text_hash(step + name)[:12],
            identity={},
            inputs=[
                InputRecord(role=role, digest=source.slices[part].digest, step=source.step,
                            slice=part, repo=source.repo, tag=source.tag)
                for role, source, part in reads.get(name, ())
            ],
            rows=Rows(into=len(rows), out=len(rows)),
            digest=text_hash(repr(rows)),
        )
        for name, rows in tables.items()
    }  # fmt: skip
    made = Manifest(
        repo=f"local/story-{step}", recipe="story", step=step, stage=step, kind=kind,
        fingerprint=text_hash(step + repr(tables))[:12],
        languages=list(dict.fromkeys(name.partition("/")[0] for name in tables)),
        fields=dict(fields or {}), how={}, seed=42, slices=slices,
        files=[FileRecord(path=p, sha256=text_hash(p), size=len(c)) for p, c in contents.items()],
        stats=dict(stats or {}), determinism="exact", cost=Cost(wall_seconds=61.0),
        license=License(id="apache-2.0"),
        environment={"python": "3.11"}, created="2026-03-01T12:00:00+00:00",
    )  # fmt: skip
    contents["factory.json"] = made.dump().encode()
    there = "https://huggingface.co"
    contents["README.md"] = (
        card
        or f"# {step}\n\nRows of {kind}, in [CroCo story](/local/collections) with its "
        f"[results page]({there}/spaces/local/croco-story-results), from "
        f"[the prompts]({there}/datasets/local/story-prompts/tree/main) and "
        f"[a model]({there}/org/model).\n"
    ).encode()
    put(hub, "dataset", made.repo, contents, private=private, tag=made.tag)
    return made


def put(
    hub: LocalHub,
    kind: str,
    name: str,
    contents: Mapping[str, bytes],
    *,
    private: bool = False,
    tag: str | None = None,
    title: str = "Publish",
) -> None:
    """Commit files to a repo, which is made if need be."""
    namespace, _, short = name.partition("/")
    existing = [r for r in hub.repos.visible(kind, OWNER) if r.id == name]
    repo = (
        existing[0]
        if existing
        else hub.create_repo(kind, namespace, short, owner="local", private=private)  # type: ignore[arg-type]
    )
    puts = [
        Put(tuple(path.split("/")), hub.store_file(path.rpartition("/")[2], content))
        for path, content in contents.items()
    ]
    commit = hub.history.commit(repo, MAIN, puts, Words("local", title))
    if tag is not None:
        hub.refs.create(repo, tag, commit.oid, tag=True)


def collect(hub: LocalHub, title: str, made: Sequence[Manifest]) -> str:
    """Put artifacts into a new collection, each with a note, and return its slug."""
    shelf = hub.collections.create(
        "local", title, OWNER, description="Written by hand.", private=False
    )
    for manifest in made:
        namespace, _, name = manifest.repo.partition("/")
        repo = hub.repos.find("dataset", namespace, name, OWNER)
        note = f"{manifest.step}: {manifest.rows().out} rows"
        hub.collections.add_item(shelf, OWNER, repo, note)
    return hub.collections.find("local", shelf.id, OWNER).slug


def tell(root: Path) -> str:
    """Write the whole story into a new store and return the slug of its collection."""
    hub = LocalHub(root)
    try:
        return _tell(hub)
    finally:
        hub.close()


def _tell(hub: LocalHub) -> str:
    languages = ("en", "da")
    user = {(p, lang): [{"role": "user", "content": PROMPTS[p][lang]}] for p, lang in POOLS}
    prompts = publish(hub, "prompts", "prompts", {
        lang: [{"prompt_id": p, "language": lang, "messages": user[p, lang],
                "prompt_hash": text_hash(PROMPTS[p][lang])} for p in PROMPTS]
        for lang in languages
    }, {})  # fmt: skip
    samples = publish(hub, "generate", "samples", {
        lang: [
            {"prompt_id": p, "language": lang, "k": k, "prompt_hash": text_hash(PROMPTS[p][lang]),
             "response": text, "response_hash": text_hash(text), "n_tokens": len(text) // 4 + 1,
             "n_chars": len(text), "finish_reason": end, "detected_language": spoken}
            for p in PROMPTS for k, (text, _, spoken, end) in enumerate(POOLS[p, lang])
        ]
        for lang in languages
    }, {lang: [("prompts", prompts, lang)] for lang in languages})  # fmt: skip
    scores = publish(hub, "score", "scores", {
        lang: [{"prompt_id": p, "language": lang, "k": k, "response_hash": text_hash(text),
                "reward": reward, "status": "ok"}
               for p in PROMPTS for k, (text, reward, _, _) in enumerate(POOLS[p, lang])]
        for lang in languages
    }, {lang: [("samples", samples, lang)] for lang in languages})  # fmt: skip
    pairs = publish(hub, "pair", "pairs", {
        lang: [_pair(p, lang, user[p, lang]) for p in PROMPTS if p != "sleep"] for lang in languages
    }, {lang: [("scores", scores, lang), ("samples", samples, lang), ("prompts", prompts, lang)]
        for lang in languages})  # fmt: skip
    arena = publish(hub, "arena", "answers", {
        f"en/{model}": [_answer(model, q) for q in QUESTIONS] for model in ("policy", "tuned")
    }, {})  # fmt: skip
    reads = {JUDGED: [("answers", arena, JUDGED), ("reference", arena, "en/policy")]}
    chat = publish(hub, "judge", "verdicts", {JUDGED: [
        _verdict(q, "org/chat-judge", order, QUESTIONS[q][3][number])
        for q in QUESTIONS for number, order in enumerate(("model_first", "reference_first"))
    ]}, reads, stats={
        "judge": "org/chat-judge", "judge_kind": "llm", "comparisons": _RATES,
    })  # fmt: skip
    reward = publish(hub, "judge-2", "verdicts", {JUDGED: [
        _verdict(q, "org/reward", "apart", QUESTIONS[q][4]) for q in QUESTIONS
    ]}, reads, stats={"judge": "org/reward"})  # fmt: skip
    scored = publish(hub, "euroeval", "results", {
        name: [_score(name, dataset, value) for dataset, value in SCORES[name].items()]
        for name in SCORES
    }, {}, stats={"deltas": [
        {"model": "tuned", "reference": "policy", "language": "en", "dataset": "sst5",
         "metric": "mcc", "value": 61.0, "reference_value": 58.5, "delta": 2.5, "low": 1.0,
         "high": 4.0, "significant": True}
    ]})  # fmt: skip
    made = [prompts, samples, scores, pairs, arena, chat, reward, scored]
    slug = collect(hub, "CroCo story", made)
    put(hub, "space", "local/story-space", {"README.md": b"# A Space", "index.html": b"<p>Here"})
    space = hub.repos.find("space", "local", "story-space", OWNER)
    hub.collections.add_item(hub.collections.find(*slug.split("/"), OWNER), OWNER, space, None)
    repo = hub.repos.find("dataset", "local", "story-pair", OWNER)
    hub.discussions.open(repo, OWNER, "Two more pairs", "", pull_request=True)
    return slug


def _pair(prompt: str, language: str, asked: list[dict[str, str]]) -> dict[str, Any]:
    best, worst = POOLS[prompt, language][0], POOLS[prompt, language][-1]
    sides = {
        side: [{"role": "assistant", "content": answer[0]}]
        for side, answer in (("chosen", best), ("rejected", worst))
    }
    return {
        "prompt_id": prompt, "prompt": asked, **sides, "score_chosen": best[1],
        "score_rejected": worst[1], "prompt_language": language, "chosen_language": best[2],
        "rejected_language": worst[2], "chosen_k": 0,
        "rejected_k": len(POOLS[prompt, language]) - 1, "id": f"{prompt}/{language}",
        "pool_size": len(POOLS[prompt, language]),
    }  # fmt: skip


def _score(name: str, dataset: str, value: float) -> dict[str, Any]:
    language, _, model = name.partition("/")
    return {
        "model": model, "dataset": dataset, "task": "any", "language": language, "split": "test",
        "metric": "mcc", "primary": True, "value": value, "n_iterations": 10, "few_shot": True,
        "backend": "hf", "tool_version": "17.0.0", "source": "org/any", "source_digest": "0",
        "status": "ok",
    }  # fmt: skip


def _answer(model: str, question: str) -> dict[str, Any]:
    asked, base, tuned = QUESTIONS[question][:3]
    text = tuned if model == "tuned" else base
    cut = text.endswith("og")
    return {
        "model": model, "question_id": question, "language": "en", "answer": text,
        "prompt": [{"role": "user", "content": asked}], "n_tokens": len(text) // 4,
        "finish_reason": "length" if cut else "stop", "detected_language": "da" if cut else "en",
    }  # fmt: skip


def _verdict(question: str, judge: str, order: str, verdict: str) -> dict[str, Any]:
    words = {
        "model": "The second answer says why, the first only that.",
        "reference": "Only one of the answers is in the language of the question.",
    }[verdict]
    alone = order == "apart"
    return {
        "model": "tuned", "reference": "policy", "judge": judge, "question_id": question,
        "language": "en", "order": order, "verdict": verdict,
        "judge_output": None if alone else words, "score_model": 1.2 if alone else None,
        "score_reference": 0.7 if alone else None,
    }  # fmt: skip

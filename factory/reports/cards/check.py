"""Check any repo's card: metadata that the Hub misreads, and links that do not resolve."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from factory.artifacts import front_matter, licenses
from factory.artifacts.manifest import License
from factory.errors import Check, InputError, nearest
from factory.language.languages import tag_of

_SIZES = re.compile(r"n<1K|1K<n<10K|10K<n<100K|100K<n<1M|1M<n<10M|10M<n<100M|100M<n<1B|1B<n<10B|"
                    r"10B<n<100B|100B<n<1T|n>1T")  # fmt: skip
_LINK = re.compile(
    r"https://huggingface\.co/(datasets/)?([\w.-]+/[\w.-]+)/(?:tree|blob|resolve)/([\w.-]+)"
)
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)")
_CODE = re.compile(
    r"(load_dataset|snapshot_download|from_pretrained)\([^()\"']*[\"']([\w.-]+/[\w.-]+)[\"']"
    r"[^()]*?revision=[\"']([\w.-]+)[\"']"
)

Has = Callable[[str, str, str], bool]  # whether the hub has (repo, kind, revision)


def problem(message: str, fix: str) -> Check:
    """Return a problem of a card."""
    return Check("card", "failed", message, fix)


def check(
    readme: str, kind: str, paths: Iterable[str], has: Has, adapter: Mapping[str, Any] | None = None
) -> list[Check]:
    """Return the problems of a README in a repo of `kind` with the files `paths`. `adapter` is
    the repo's adapter_config.json, if any; `has` is called for every revision that the card
    names."""
    try:
        data, body = front_matter.front_matter(readme)
    except InputError as error:
        return [problem(error.what, error.fix)]
    if data is None:
        return [problem("it has no metadata", "begin README.md with --- lines around YAML")]
    files = list(paths)
    return [
        *_license(data),
        *_languages(data, kind),
        *(_base(data, adapter) if kind == "model" else _configs(data, files)),
        *_words(data, kind),
        *_links(body, files, has),
    ]


def _license(data: Mapping[str, Any]) -> Iterator[Check]:
    stated = data.get("license")
    if not stated:
        yield problem("no license is stated", "add license: with an id of the Hub, as apache-2.0")
    for license in stated if isinstance(stated, list) else [stated] if stated else []:
        if license == "other":
            absent = [k for k in ("license_name", "license_link") if not data.get(k)]
            if absent:
                yield problem(f"license other has no {' and no '.join(absent)}", "add them")
        elif not licenses.is_known(License(id=str(license))):
            near = nearest(str(license), licenses.TABLE)
            fix = "use an id of the Hub, or other with license_name and license_link"
            yield problem(f"license {license!r} is not known{near}", fix)


def _languages(data: Mapping[str, Any], kind: str) -> Iterator[Check]:
    stated = data.get("language")
    if not stated and kind == "dataset":
        yield problem("no language is stated", "add language: with a list of codes, as [da, en]")
    for code in stated if isinstance(stated, list) else [stated] if stated else []:
        meant = tag_of(str(code))
        if not re.fullmatch(r"[a-z]{3}|code|multilingual", str(code)) and meant != (code, "", ""):
            hint = f" (did you mean {meant.base!r}?)" if meant else ""
            yield problem(
                f"language {code!r} is no code of ISO 639{hint}",
                "use two letters, or three of ISO 639-3",
            )


def _base(data: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> Iterator[Check]:
    stated = data.get("base_model")
    bases = stated if isinstance(stated, list) else [stated] if stated else []
    for base in bases:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
            yield problem(f"base_model {base!r} is not a repo", "give it as org/name")
    if adapter is None:
        return
    trained_on = str(adapter.get("base_model_name_or_path") or "")
    if not bases:
        yield problem(
            "an adapter without base_model", f"add base_model: {trained_on or 'org/name'}"
        )
    elif trained_on and trained_on not in bases:
        yield problem(
            f"base_model is {bases[0]}, but adapter_config.json says {trained_on}",
            "make both the repo that it was trained on",
        )
    for key, right in (("library_name", "peft"), ("base_model_relation", "adapter")):
        if data.get(key) != right:
            yield problem(f"an adapter whose {key} is {data.get(key)!r}", f"write {key}: {right}")


def _configs(data: Mapping[str, Any], files: list[str]) -> Iterator[Check]:
    configs = data.get("configs") or []
    if not isinstance(configs, list):
        yield problem("configs is not a list", "write a list of config_name and data_files")
        return
    for config in configs:
        if not isinstance(config, Mapping) or "config_name" not in config:
            yield problem(f"a config without a name: {config!r}", "give it config_name")
            continue
        for pattern in _patterns(config.get("data_files")):
            # `**/` also stands for no folder at all
            if not any(fnmatch(f, p) for f in files for p in (pattern, pattern.replace("**/", ""))):
                what = f"config {config['config_name']!r}: no file fits {pattern!r}"
                yield problem(what, "mend data_files, or add the files")


def _patterns(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return _patterns(value.get("path"))
    if isinstance(value, list):
        return [pattern for item in value for pattern in _patterns(item)]
    return [value] if isinstance(value, str) else []


def _words(data: Mapping[str, Any], kind: str) -> Iterator[Check]:
    for key in ("tags", "datasets", "size_categories", "metrics"):
        value = data.get(key)
        for item in value if isinstance(value, list) else []:
            if not isinstance(item, str):
                yield problem(f"{key} holds {item!r}, which is not text", "put it in quotes")
            elif key == "size_categories" and not _SIZES.fullmatch(item):
                yield problem(f"size_categories {item!r} is none of the Hub's", "use 1K<n<10K, …")
            elif key == "datasets" and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", item):
                yield problem(f"datasets {item!r} is not a repo", "give it as org/name")
    if kind == "dataset" and data.get("base_model"):
        yield problem("a dataset with base_model", "leave it to models")


def _links(body: str, files: list[str], has: Has) -> Iterator[Check]:
    named = [
        (repo, "dataset" if data else "model", revision)
        for data, repo, revision in _LINK.findall(body)
    ] + [
        (repo, "dataset" if call == "load_dataset" else "model", revision)
        for call, repo, revision in _CODE.findall(body)
        if call != "snapshot_download"
    ]
    for repo, kind, revision in dict.fromkeys(named):
        if not has(repo, kind, revision):
            yield problem(
                f"it names {kind} {repo} at {revision}, which this hub does not have",
                "mend the revision, or bring it here (factory pull, factory push)",
            )
    for path in dict.fromkeys(_IMAGE.findall(body)):
        if "://" not in path and path not in files:
            yield problem(f"it shows {path}, which is not in the repo", "add the file")

"""Licences: a table of those that the Hub knows, and the licence of an artifact made from others.

This is bookkeeping, not advice. The rule is cautious: every input counts, a prompt as much as a
model whose answers or scores are kept. What the table cannot settle is a conflict, which a person
settles in the recipe, with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from factory.artifacts.front_matter import front_matter
from factory.artifacts.manifest import License
from factory.errors import RecipeError, nearest

Kind = Literal["permissive", "share-alike", "non-commercial", "no-derivatives", "own terms"]


@dataclass(frozen=True)
class Terms:
    """Conditions of a licence for whoever distributes a derived work.

    `asks` orders permissive ones; `accepts` are later versions a work may move to; `begins` is how
    the name of a model made from it must begin; `notice` must go along.
    """

    kind: Kind
    name: str
    asks: int = 0
    accepts: tuple[str, ...] = ()
    share_alike: bool = False
    link: str = ""
    begins: str = ""
    notice: str = ""


def _cc(code: str, kind: Kind, name: str, versions: str, **more: Any) -> dict[str, Terms]:
    """Return the versions of one Creative Commons licence; a share-alike one may move to a later
    one."""
    terms_by_id, all_versions = {}, versions.split()
    for number, version in enumerate(all_versions):
        later = tuple(f"cc-{code}-{v}" for v in all_versions[number + 1 :]) if "sa" in code else ()
        terms = Terms(
            kind,
            f"Creative Commons {name} {version}",
            accepts=later,
            link=f"https://creativecommons.org/licenses/{code}/{version}/",
            **more,
        )
        terms_by_id[f"cc-{code}-{version}"] = terms
    return terms_by_id


def _llama(version: str, slug: str, began: str, built: str) -> Terms:
    return Terms(
        "own terms",
        f"Llama {version} Community License",
        link=f"https://www.llama.com/{slug}/license/",
        begins=began,
        notice=f"{built}Llama {version} is licensed under the Llama {version} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
    )


_FREE = ("mit MIT", "isc ISC", "bsd BSD", "bsd-2-clause BSD-2-Clause", "bsd-3-clause BSD-3-Clause",
         "bsd-3-clause-clear BSD-3-Clause-Clear", "zlib zlib", "ncsa NCSA", "bsl-1.0 BSL-1.0",
         "postgresql PostgreSQL")  # fmt: skip
_COPYLEFT = ("gpl-3.0 agpl-3.0", "agpl-3.0", "gpl-2.0", "lgpl-2.1 lgpl-3.0", "lgpl-3.0", "mpl-2.0",
             "epl-2.0", "eupl-1.2", "osl-3.0", "odbl", "cdla-sharing-1.0", "gfdl")  # fmt: skip
_RAIL = ("openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m",
         "bigcode-openrail-m", "bigscience-bloom-rail-1.0")  # fmt: skip

# Every id here is one the Hub takes. Families that do not say which (`cc`, `gpl`) are left out.
TABLE: Mapping[str, Terms] = {
    **{code: Terms("permissive", code) for code in ("cc0-1.0", "pddl", "unlicense", "wtfpl")},
    **{
        code: Terms("permissive", name, asks=1)
        for code, name in (line.split() for line in _FREE)
    },
    **{
        code: Terms("permissive", code, asks=2)
        for code in ("cdla-permissive-2.0", "cdla-permissive-1.0", "afl-3.0", "artistic-2.0",
                     "ecl-2.0", "ms-pl", "etalab-2.0", "odc-by")
    },
    **_cc("by", "permissive", "Attribution", "2.0 2.5 3.0 4.0", asks=3),
    "apache-2.0": Terms(
        "permissive",
        "Apache License 2.0",
        asks=4,
        link="https://www.apache.org/licenses/LICENSE-2.0",
    ),
    **{
        line.split()[0]: Terms(
            "share-alike", line.split()[0], accepts=tuple(line.split()[1:]), share_alike=True
        )
        for line in _COPYLEFT
    },
    **_cc("by-sa", "share-alike", "Attribution ShareAlike", "3.0 4.0", share_alike=True),
    **_cc("by-nc", "non-commercial", "Attribution NonCommercial", "2.0 3.0 4.0"),
    **_cc("by-nc-sa", "non-commercial", "Attribution NonCommercial ShareAlike", "2.0 3.0 4.0",
          share_alike=True),
    **_cc("by-nd", "no-derivatives", "Attribution NoDerivatives", "4.0"),
    **_cc("by-nc-nd", "no-derivatives", "Attribution NonCommercial NoDerivatives", "3.0 4.0"),
    **{code: Terms("own terms", code) for code in _RAIL},
    **{
        code: Terms("own terms", code)
        for code in ("apple-amlr", "apple-ascl", "intel-research", "deepfloyd-if-license",
                    "fair-noncommercial-research-license", "h-research", "c-uda")
    },
    "gemma": Terms(
        "own terms",
        "Gemma Terms of Use",
        link="https://ai.google.dev/gemma/terms",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "https://ai.google.dev/gemma/terms",
    ),
    "llama2": _llama("2", "llama2", "", ""),
    "llama3": _llama("3", "llama3", "Llama 3", "Built with Meta Llama 3. "),
    "llama3.1": _llama("3.1", "llama3_1", "Llama", "Built with Llama. "),
    "llama3.2": _llama("3.2", "llama3_2", "Llama", "Built with Llama. "),
    "llama3.3": _llama("3.3", "llama3_3", "Llama", "Built with Llama. "),
    "llama4": _llama("4", "llama4", "Llama", "Built with Llama. "),
}  # fmt: skip


def is_known(license: License | None) -> bool:
    """Return whether the table has this licence, or it is `other` with a name and a link."""
    return license is not None and (
        license.id in TABLE or (license.id == "other" and bool(license.name and license.link))
    )


def terms(license: License) -> Terms:
    """Return the terms of a licence. `other` is under its own terms."""
    if license.id in TABLE:
        return TABLE[license.id]
    return Terms("own terms", license.name or license.id, link=license.link or "")


def stated_license(readme: str) -> License | None:
    """Return the licence that a card states. None if it states none, several that cannot be
    combined, or one that the table lacks. Raises InputError for metadata that is not YAML."""
    data, _ = front_matter(readme)
    value = (data or {}).get("license")
    values = value if isinstance(value, list) else [value]
    ids = [str(item).lower() for item in values if item]
    named = {
        key: str((data or {})[f"license_{key}"])
        for key in ("name", "link")
        if (data or {}).get(f"license_{key}")
    }
    licenses = [
        License(id=license_id, **(named if license_id == "other" else {})) for license_id in ids
    ]
    if not licenses or not all(map(is_known, licenses)):
        return None
    return _strictest(licenses)


def settle(
    repo: str,
    kind: str,
    inputs: Sequence[tuple[str, License | None]],
    declared: License | None,
) -> License:
    """Return the licence of an artifact in `repo` made from `inputs` (name and licence each).

    `declared` is the recipe's: with a reason it stands, without one all inputs must allow it. If
    the recipe declares none, the strictest input decides. Raises RecipeError, which names the
    conflicting inputs and how to settle it.
    """
    settle_it = (
        "say in the recipe what it is, with a reason: license: {id: …, because: …}; or what a "
        "source is under: licenses: {source: id}"
    )
    if declared is not None:
        if not is_known(declared):
            raise RecipeError(
                f"license {declared.id!r} is not in the table{nearest(declared.id, TABLE)}",
                "use an id of the Hub, or license: {id: other, name: …, link: …}",
            )
        if declared.because:
            return declared
    unknown = [name for name, license in inputs if not is_known(license)]
    if unknown:
        source = unknown[0].removesuffix("@main")
        raise RecipeError(
            f"{repo}: unknown licence: {_join_names(unknown)}",
            f"say in the recipe what it is under, as licenses: {{{source}: apache-2.0}}; or decide "
            "for what is made of it: license: {id: …, because: …}",
        )
    licensed = [(name, license) for name, license in inputs if license is not None]
    chosen = declared or _strictest([license for _, license in licensed])
    if chosen is None:
        names = [f"{name} ({license.id})" for name, license in licensed]
        raise RecipeError(
            f"{repo}: the licences of its inputs conflict: {_join_names(names)}"
            if licensed
            else f"{repo}: no input states a licence",
            settle_it,
        )
    conflicts = [
        f"{name} ({license.id})" for name, license in licensed if not _allows(license, chosen)
    ]
    if conflicts:
        raise RecipeError(
            f"{repo} cannot be under {chosen.id}: it is made from {_join_names(conflicts)}",
            settle_it,
        )
    begins = terms(chosen).begins
    if begins and kind in ("adapter", "model") and not _begins(repo, begins):
        raise RecipeError(
            f"{repo}: under the {terms(chosen).name}, its name must begin with {begins!r}",
            f"call the recipe {begins.replace(' ', '-')}-…, or give license: a because:",
        )
    return chosen


def header(license: License) -> dict[str, str]:
    """Return the lines of a card's metadata that state a licence."""
    lines = {"license": license.id}
    if license.id == "other":
        lines |= {"license_name": _slug(license.name or ""), "license_link": license.link or ""}
    return lines


def _allows(source: License, product: License) -> bool:
    """Return whether a work derived from one under `source` may be distributed under `product`."""
    source_terms, product_terms = terms(source), terms(product)
    same = product.id in (source.id, *source_terms.accepts) and product.name == source.name
    match source_terms.kind:
        case "permissive":
            return True
        case "non-commercial":
            return same or (product_terms.kind == "non-commercial" and not source_terms.share_alike)
        case "no-derivatives":
            return False
        case _:
            return same


def _strictest(licenses: Iterable[License]) -> License | None:
    """Return the licence among these that a work made from all of them may have, if there is
    one."""
    candidates = list(licenses)
    compatible = [
        candidate
        for candidate in candidates
        if all(_allows(other, candidate) for other in candidates)
    ]
    best = max(
        compatible, key=lambda candidate: (terms(candidate).asks, candidate.id), default=None
    )
    return best and best.model_copy(update={"because": None})


def _begins(repo: str, begins: str) -> bool:
    return _plain(repo.partition("/")[2]).startswith(_plain(begins))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _join_names(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 4} more" if len(unique) > 4 else ""
    return ", ".join(unique[:4]) + more

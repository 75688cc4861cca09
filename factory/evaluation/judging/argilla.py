"""Pairs to annotate in Argilla, and what people said there, by its own client."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from factory.errors import InputError
from factory.evaluation.judging.people import COLUMNS, RUBRIC

_TEXTS, _LABELS = ("question", "answer_a", "answer_b"), ("language", "category")
VERDICTS = ("A", "B", "tie")


@contextmanager
def _argilla() -> Iterator[tuple[Any, Any]]:
    """Open Argilla's library and a client of the server at ARGILLA_API_URL. Raises InputError."""
    try:
        argilla, httpx = map(importlib.import_module, ("argilla", "httpx"))
    except ModuleNotFoundError:
        raise InputError("argilla is not installed", "pip install argilla, or write CSV") from None
    url = os.environ.get("ARGILLA_API_URL")
    if not url:
        raise InputError(
            "there is no address of an Argilla server",
            "set ARGILLA_API_URL and ARGILLA_API_KEY",
        )
    try:
        yield argilla, argilla.Argilla(api_url=url, api_key=os.environ.get("ARGILLA_API_KEY"))
    except (httpx.HTTPError, argilla._exceptions.ArgillaError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"Argilla at {url}: {first}", "check ARGILLA_API_URL, ARGILLA_API_KEY and the workspace"
        ) from None


def write(rows: Sequence[dict[str, str]], name: str, workspace: str | None) -> None:
    """Create the dataset `name` with these rows and the rubric. Raises InputError."""
    with _argilla() as (argilla, client):
        settings = argilla.Settings(
            guidelines=RUBRIC,
            fields=[argilla.TextField(name=column) for column in _TEXTS],
            questions=[
                argilla.LabelQuestion(name="verdict", labels=list(VERDICTS)),
                argilla.TextQuestion(name="comment", required=False),
            ],
            metadata=[argilla.TermsMetadataProperty(name=column) for column in _LABELS],
        )
        dataset = argilla.Dataset(name=name, workspace=workspace, settings=settings, client=client)
        dataset.create()
        dataset.records.log(
            [
                argilla.Record(
                    id=row["id"],
                    fields={column: row[column] for column in _TEXTS},
                    metadata={column: row[column] for column in _LABELS if row[column]},
                )
                for row in rows
            ]
        )


def read(name: str, workspace: str | None) -> list[dict[str, str]]:
    """Return the rows of the dataset `name`, one for each submitted verdict. Raises InputError."""
    rows = []
    with _argilla() as (_, client):
        dataset = client.datasets(name=name, workspace=workspace)
        if dataset is None:
            raise InputError(f"Argilla has no dataset {name!r}", "check --workspace")
        for record in dataset.records(with_responses=True):
            comments = {str(r.user_id): str(r.value) for r in record.responses["comment"]}
            for response in record.responses["verdict"]:
                if str(getattr(response.status, "value", response.status)) != "submitted":
                    continue
                row = {"id": str(record.id), **{c: str(record.fields[c]) for c in _TEXTS}}
                row |= {c: str(record.metadata.get(c) or "") for c in _LABELS}
                row |= {
                    "verdict": str(response.value),
                    "comment": comments.get(str(response.user_id), ""),
                }
                rows.append({column: row[column] for column in COLUMNS})
    return rows

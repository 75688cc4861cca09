"""The row contracts: one Arrow schema per kind of table, checked at every boundary.

A kind grows only by nullable columns, which `conform` fills in older tables. Types are spelled
out even where a column may be all null, so that no reader ever has to guess one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from factory.errors import InputError, nearest

if TYPE_CHECKING:
    import polars as pl

_text, _int, _float = pa.string(), pa.int64(), pa.float64()
# Texts, and the hashes of texts, that hardly ever come twice in a column.
UNLIKE = frozenset({"response", "response_hash", "answer", "content"})
# Columns that a table has only where one of its rows says something in them.
SELDOM = frozenset(
    {"gold", "quality", "draw", "rewards", "disagreement", "log_prob", "subset"}
    | {"source", "chosen_source", "rejected_source", "weight"}
)
GOLD = -1  # the k of an answer that a person wrote
OTHERS = 1_000_000  # the first k of the answers of a second model; of a third at twice that
MESSAGES = pa.list_(pa.struct([pa.field("role", _text), pa.field("content", _text)]))


def _must(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _may(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=True)


SCHEMAS: dict[str, pa.Schema] = {
    "prompts": pa.schema(
        [
            _must("prompt_id", _text),
            _must("language", _text),
            _must("messages", MESSAGES),
            _must("prompt_hash", _text),
            _may("source_dataset", _text),
            _may("domain", _text),
            # of a translation: what it was made from, and how that went
            _may("source_language", _text),
            _may("source_hash", _text),  # the prompt_hash of what was translated
            _may("finish_reason", _text),  # stop | length
            _may("detected_language", _text),
            _may("subcategory", _text),  # of a question
            _may("gold", _text),  # an answer that a person wrote
            _may("quality", _float),  # of a translation
        ]
    ),
    "samples": pa.schema(
        [
            _must("prompt_id", _text),
            _must("language", _text),
            _must("k", _int),
            _must("prompt_hash", _text),
            _must("response", _text),
            _must("response_hash", _text),
            _may("n_tokens", _int),  # null where somebody else drew it and did not say
            _must("n_chars", _int),
            _must("finish_reason", _text),  # stop | length | unknown
            _may("seed", _int),
            _may("detected_language", _text),
            _may("source", _text),  # of several: the model that drew it, or gold
        ]
    ),
    "scores": pa.schema(
        [
            _must("prompt_id", _text),
            _must("language", _text),
            _must("k", _int),
            _must("response_hash", _text),
            _may("reward", _float),  # null when there is none: `status` says why
            _may("n_tokens", _int),
            # ok | too_long | not_finite | refused_by_template | no_english_prompt | absent |
            # failed | no_reference |
            # refused | unparseable
            _must("status", _text),
            # of another language's prompt or a reference that it was read with
            _may("prompt_hash", _text),
            # of several rewards: what each says, in their order in the recipe, and how far apart
            _may("rewards", pa.list_(_float)),
            _may("disagreement", _float),  # standard deviation of their z-scores
            _may("log_prob", _float),  # of the answer under a model, in nats
        ]
    ),
    "preferences": pa.schema(
        [
            _must("prompt_id", _text),
            _must("language", _text),
            _must("prompt", MESSAGES),
            _must("chosen", MESSAGES),
            _must("rejected", MESSAGES),
            _may("margin", _float),
            _may("source", _text),  # of several sets: the one that it is of
            _may("weight", _float),  # of several sets: how often a row of it is learned from
        ]
    ),
    "pairs": pa.schema(
        [
            _must("prompt_id", _text),
            _must("prompt", MESSAGES),
            _must("chosen", MESSAGES),
            _must("rejected", MESSAGES),
            # of somebody else's pairs these may be unknown
            _may("score_chosen", _float),
            _may("score_rejected", _float),
            _must("prompt_language", _text),
            _must("chosen_language", _text),
            _must("rejected_language", _text),
            _may("chosen_k", _int),
            _may("rejected_k", _int),
            _may("pool_size", _int),
            _may("pool_mean", _float),
            _may("pool_std", _float),
            _may("id", _text),  # of this pair among those of all configs
            _may("reward_chosen", _float),  # as scored; the score is what was compared
            _may("reward_rejected", _float),
            _may("chosen_tokens", _int),
            _may("rejected_tokens", _int),
            _may("quality", _float),  # of a translation
            _may("chosen_source", _text),  # of several: which model drew it, or gold
            _may("rejected_source", _text),
        ]
    ),
    "sft": pa.schema(
        [
            _must("id", _text),
            _must("prompt_id", _text),
            _must("language", _text),
            _must("prompt", MESSAGES),
            _must("completion", MESSAGES),
            _may("reward", _float),  # null where people wrote the completion
            _may("k", _int),
            _may("score", _float),
            _may("n_tokens", _int),
            _may("pool_size", _int),
            _may("pool_mean", _float),
            _may("pool_std", _float),
            _may("source", _text),  # of several: the model that drew it, or gold
        ]
    ),
    "answers": pa.schema(
        [
            _must("model", _text),
            _must("question_id", _text),
            _must("language", _text),
            _may("category", _text),
            _may("subcategory", _text),
            _must("prompt", MESSAGES),
            _must("answer", _text),
            _must("n_tokens", _int),
            _must("finish_reason", _text),
            _may("detected_language", _text),
            _may("prompt_hash", _text),
            _may("lines", _int),  # that were long enough to tell their language
            _may("wrong_lines", _int),  # of these, in another language than the question
            _may("draw", _int),  # of several answers to a question, from 0
        ]
    ),
    # what a reward model makes of a pair whose better answer is known
    "rankings": pa.schema(
        [
            _must("reward_model", _text),
            _must("pair_id", _text),
            _must("language", _text),
            _may("reward_chosen", _float),
            _may("reward_rejected", _float),
            _must("status", _text),  # ok, or why one of them is null
            _must("n_tokens", _int),  # of both
            _may("subset", _text),  # of a benchmark
        ]
    ),
    "verdicts": pa.schema(
        [
            _must("model", _text),
            _must("reference", _text),
            _must("judge", _text),
            _must("question_id", _text),
            _must("language", _text),
            # model_first | reference_first; a reward model reads one answer at a time: apart
            _must("order", _text),
            _must("verdict", _text),  # model | reference | tie | unparseable
            _may("judge_output", _text),
            _may("score_model", _float),
            _may("score_reference", _float),
            # what was read: a verdict on the very same texts stands
            _may("prompt_hash", _text),
            _may("answer_hash", _text),
            _may("reference_hash", _text),
            # identical | too_long | cut_off | no_verdict | no_reward | refused_by_template; null
            # where a judge decided
            _may("reason", _text),
            _may("cut_tokens", _int),  # of both answers, left out so that they fit
        ]
    ),
    "results": pa.schema(
        [
            _must("model", _text),
            _may("adapter", _text),  # null for a model without one
            _must("dataset", _text),  # the benchmark, by EuroEval's name
            _must("task", _text),
            _must("language", _text),
            _must("split", _text),
            _must("metric", _text),
            _must("primary", pa.bool_()),  # the metric that stands for the benchmark
            _may("value", _float),  # null when there is none: `status` says why
            _may("ci_low", _float),  # null for a single iteration
            _may("ci_high", _float),
            _must("n_iterations", _int),
            _may("values", pa.list_(_float)),  # of each iteration
            _may("failed", _int),  # answers that EuroEval could not read
            _may("lower_is_better", pa.bool_()),
            _must("few_shot", pa.bool_()),
            _must("backend", _text),  # scores of two backends are not comparable
            _must("tool_version", _text),
            _must("source", _text),  # the dataset that was read, and its content
            _must("source_digest", _text),
            _must("status", _text),  # ok | not_finite | no_score | no_record
        ]
    ),
}


def conform(
    table: pa.Table, kind: str, where: str, columns: Collection[str] | None = None
) -> pa.Table:
    """Return `table` with exactly the columns of `kind`, in order; absent nullable ones become
    null, but for those that are seldom there. With `columns`, only these of them.

    Raises InputError naming the column (and the first row, for a null) that does not fit; `where`
    says whose table it is in that message.
    """
    schema = SCHEMAS[kind]
    if columns is not None:
        schema = pa.schema([field for field in schema if field.name in columns])
    check_names(table.column_names, schema, kind, where)
    arrays = []
    for field in schema:
        if field.name not in table.column_names and field.name in SELDOM and field.nullable:
            schema = schema.remove(schema.get_field_index(field.name))
            continue
        if field.name not in table.column_names:
            arrays.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            row = column.is_null().index(True).as_py()
            raise InputError(f"{where}: row {row + 1} has no {field.name!r}", "fill or drop it")
        try:
            arrays.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise InputError(
                f"{where}: column {field.name!r} is {column.type}, not {field.type}",
                str(error).splitlines()[0],
            ) from None
    return pa.table(arrays, schema=schema)


def check_names(names: Sequence[str], schema: pa.Schema, kind: str, where: str) -> None:
    """Raise InputError when a column of `schema` that may not be null is not among `names`."""
    for field in schema:
        if not field.nullable and field.name not in names:
            raise InputError(
                f"{where}: no column {field.name!r}{nearest(field.name, names)}",
                f"a table of {kind} needs {', '.join(SCHEMAS[kind].names)}",
            )


def from_rows(rows: list[dict[str, object]], kind: str, keep: Collection[str] = ()) -> pa.Table:
    """Convert rows of a stage to a table of `kind`, with the columns `keep` even where all are
    null; a missing or ill-typed cell is a bug of the stage."""
    schema = SCHEMAS[kind]
    for name in SELDOM & {field.name for field in schema if field.nullable} - set(keep):
        if all(row.get(name) is None for row in rows):
            schema = schema.remove(schema.get_field_index(name))
    return pa.Table.from_pylist(rows, schema=schema)


def single_messages(role: str, texts: pl.Series) -> pa.Array:
    """Return conversations of one message each, all by `role`. (By polars: pyarrow's own ways to
    make an array from values import pandas.)"""
    import polars as pl

    message = pl.struct(pl.lit(role).alias("role"), texts.alias("content"))
    return pl.select(pl.concat_list(message)).to_series().to_arrow()

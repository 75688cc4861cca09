"""pair and best: which answer is preferred to which, and which is the best, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from factory.pairs.config import (
    DropPairRules,
    DropRules,
    Keep,
    KeepSides,
    MinOf,
    RejectedPoint,
    Sigma,
    place,
)
from factory.pairs.selection import Selection, coded
from factory.stage.inputs import SliceSpec

if TYPE_CHECKING:
    import polars as pl

    from factory.pairs.candidates import Candidates
    from factory.pairs.rules import Pairing, Rule


class Pair(Selection):
    """Preference pairs. Chosen is the best of the pool; rejected is nearest to mean - 2 sigma
    (CroCo, after arXiv 2502.16825) among those below it. The prompt of a cross-lingual pair is in
    the language of one of its sides, or in a random one that it exists in. `length_control`: scores
    less alpha a character, as in ICR (arXiv 2503.04647), so that both sides are equally long on
    average. `rule: dcrm` takes, in the place of all this, the pair of the pool with the highest
    distance-calibrated reward margin (arXiv 2506.14157): far apart in reward, near in words.
    `reward_augmented`: two rows of each pair (arXiv 2410.08067)."""

    name: ClassVar[str] = "pair"
    kind: ClassVar[str] = "pairs"
    repo: ClassVar[str] = "pair"

    # `points`, which are chosen and rejected; or of all pairs of a pool that with the highest DCRM
    rule: Literal["points", "dcrm"] = "points"
    rejected: RejectedPoint = Sigma(sigma=-2.0)  # which of those below the chosen one
    keep: KeepSides = Field(default=KeepSides())  # who may stand on which side
    drop: DropPairRules = (
        DropPairRules()
    )  # pairs that the rule found, and that are left out all the same
    # whose language a cross-lingual pair's prompt is in
    prompt_language: Literal["chosen", "rejected", "random"] = "chosen"
    length_control: bool = False
    # each pair twice, under a system message that asks for a reward on a scale of 1 to 10: for that
    # of the chosen it is as it is, for that of the rejected the sides are exchanged
    reward_augmented: bool = False

    _cross: ClassVar[tuple[str, ...]] = ("normalize", "ties", "prompt_language")
    _sides: ClassVar[dict[str, str]] = {"chosen": "chosen", "rejected": "rejected"}

    @model_validator(mode="after")
    def _one_lies_below_the_other(self) -> Pair:
        chosen, rejected = self.chosen, self.rejected
        if (
            isinstance(chosen, Sigma)
            and isinstance(rejected, Sigma)
            and rejected.sigma >= chosen.sigma
        ):
            raise ValueError(
                f"rejected at {rejected.sigma:+g} sigma does not lie below chosen at "
                f"{chosen.sigma:+g}"
            )
        fields = type(self).model_fields
        for name in ("chosen", "rejected", "length_control", "vote"):
            if self.rule == "dcrm" and getattr(self, name) != fields[name].default:
                raise ValueError(f"rule: dcrm compares all pairs of a pool: leave {name} out")
        if self.vote is not None and self.length_control:
            raise ValueError("length_control is for rewards, and with vote there are none")
        if self.length_control and self.pool != "in_lang":
            raise ValueError("length_control is for pool: in_lang: a character is worth another "
                             "price in each language")  # fmt: skip
        return self

    def uses_seed(self, spec: SliceSpec) -> bool:
        random = spec.language is None and self.prompt_language == "random"
        return random or isinstance(self.rejected, MinOf) or super().uses_seed(spec)

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return super().expected_rows(rows, spec) * (2 if self.reward_augmented else 1)

    @property
    def _drops(self) -> DropRules:
        return self.drop

    def _keeps(self) -> Mapping[str, Keep]:
        return {"chosen": self.keep.chosen, "rejected": self.keep.rejected}

    def _scaled(
        self, answers: pl.DataFrame, candidates: Candidates
    ) -> tuple[pl.DataFrame, dict[str, Any]]:
        from factory.pairs import normalize

        seed, codes = candidates.job.seed, candidates.codes
        answers, more = super()._scaled(answers, candidates)
        if isinstance(self.rejected, MinOf):
            answers = answers.with_columns(
                normalize.draws(
                    seed, answers["prompt_id"], answers["language"], answers["k"], codes
                )
            )
        if self.length_control:
            answers, alpha = normalize.length_controlled(answers, self._rule)
            more = {"alpha": alpha}
        if self.rule == "dcrm":
            from factory.pairs import dcrm

            answers = dcrm.restricted(answers, candidates.responses(answers))
            more = {"likelihood_gap": "log_prob" in answers.columns}
        return answers, more

    @property
    def _rule(self) -> Rule:
        from factory.pairs.rules import Rule

        if self.rule == "dcrm":
            return Rule("max", "min", ties=self.ties)  # of the two that may be taken
        return Rule(
            place(self.chosen),
            "min" if isinstance(self.rejected, MinOf) else place(self.rejected),
            self.rejected.min_of if isinstance(self.rejected, MinOf) else None,
            self.ties,
        )

    def _select(self, answers: pl.DataFrame) -> Pairing:
        from factory.pairs.rules import pair

        return pair(answers, self._rule, self._limits())

    def _augmented(self, rows: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
        from factory.pairs import augment

        return augment.doubled(rows, answers["score"]) if self.reward_augmented else rows

    def _prompted(
        self, rows: pl.DataFrame, prompts: pl.DataFrame, seed: int, codes: list[str]
    ) -> pl.DataFrame:
        import polars as pl

        from factory.pairs import normalize

        if self.prompt_language != "random":
            return rows.with_columns(prompt_language=f"{self.prompt_language}_language")
        k = pl.Series("k", [0], pl.Int64).new_from_index(0, len(prompts))
        drawn = prompts.with_columns(
            normalize.draws(seed, prompts["prompt_id"], prompts["language"], k, codes)
        )
        first = drawn.sort("prompt_id", "draw").unique(
            "prompt_id", keep="first", maintain_order=True
        )
        return rows.join(
            first.select("prompt_id", prompt_language="language"),
            on="prompt_id",
            maintain_order="left",
        )

    def _columns(self, rows: pl.DataFrame, codes: list[str]) -> dict[str, Any]:
        columns: dict[str, Any] = {
            **super()._columns(rows, codes),
            "prompt_language": coded(rows["prompt_language"], codes),
        }
        for side in self._sides:
            columns |= {
                f"{side}_language": coded(rows[f"{side}_language"], codes),
                f"{side}_k": rows[f"{side}_k"].to_arrow(),
                f"{side}_tokens": rows[f"{side}_n_tokens"].to_arrow(),
                f"score_{side}": rows[f"{side}_score"].to_arrow(),
                f"reward_{side}": rows[f"{side}_reward"].to_arrow(),
            }
            if f"{side}_source" in rows.columns:
                columns[f"{side}_source"] = rows[f"{side}_source"].to_arrow()
        return columns


class Best(Selection):
    """Best-of-n for SFT: the chosen side of pair without a second answer, one a prompt."""

    name: ClassVar[str] = "best"
    kind: ClassVar[str] = "sft"
    repo: ClassVar[str] = "best"

    keep: Keep = Keep(finished=True, language="match")  # who may be chosen
    drop: DropRules = DropRules()  # rows that the rule found, and that are left out all the same

    _sides: ClassVar[dict[str, str]] = {"chosen": "completion"}

    @property
    def _drops(self) -> DropRules:
        return self.drop

    def _keeps(self) -> Mapping[str, Keep]:
        return {"chosen": self.keep}

    def _select(self, answers: pl.DataFrame) -> Pairing:
        from factory.pairs.rules import best

        return best(answers, place(self.chosen), self._limits(), self.ties)

    def _columns(self, rows: pl.DataFrame, codes: list[str]) -> dict[str, Any]:
        return {
            **super()._columns(rows, codes),
            "language": coded(rows["chosen_language"], codes),
            "k": rows["chosen_k"].to_arrow(),
            "n_tokens": rows["chosen_n_tokens"].to_arrow(),
            "score": rows["chosen_score"].to_arrow(),
            "reward": rows["chosen_reward"].to_arrow(),
            **({"source": rows["chosen_source"].to_arrow()} if "chosen_source" in rows else {}),
        }

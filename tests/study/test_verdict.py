"""Verdicts of made-up runs: each of the four, claims, divergence and notes; law 11 for whole studies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ablate.errors import AblateError
from ablate.study.judge import verdict
from ablate.study.judge.verdict import as_json
from ablate.study.question import Claim, Study
from ablate.study.records import RunRecord

BASELINE = [3.412, 3.431, 3.405, 3.422, 3.418, 3.427]
LOWER = [value - by for value, by in zip(BASELINE, [0.024, 0.018, 0.021, 0.027, 0.016, 0.020], strict=True)]
HIGHER = [2 * base - low for base, low in zip(BASELINE, LOWER, strict=True)]
CLOSE = [value + by for value, by in zip(BASELINE, [0.004, -0.003, 0.001, 0.002, -0.001, 0.003], strict=True)]
NOISY = [value + by for value, by in zip(BASELINE, [0.05, -0.04, 0.03, -0.06, 0.02, -0.01], strict=True)]
DIVERGED = None


def judge(*arguments: Any) -> dict[str, Any]:
    """The content of verdict.json."""
    return as_json(verdict.judge(*arguments))


def run(arm: str, seed: int, value: float | None = 3.4, status: str = "finished", **summary: Any) -> RunRecord:
    """One run; it has the metric only if it finished."""
    known = {
        "corpus": {"fingerprint": "c0ffee"},
        "git": {"revision": "1234abcd", "dirty": False},
        "versions": {"torch": "2.13.0"},
        "machine": {"platform": "Linux", "threads": 2, "gpu": None},
        "metrics": {"val/loss": value} if status == "finished" else {},
    }
    config = {"model": {"name": arm}, "seed": seed, "run_dir": f"runs/{arm}_{seed}"}
    return RunRecord(Path("runs") / f"{arm}_{seed}", arm, seed, status, config, {**known, **summary})


def arm(name: str, values: list[float | None], first: int = 0, **summary: Any) -> list[RunRecord]:
    """One run for each seed, from seed `first` on; None: it diverged."""
    return [
        run(name, seed, value, "diverged" if value is DIVERGED else "finished", **summary)
        for seed, value in enumerate(values, first)
    ]


def study(*arms: str, expect: str | None = None, **options: Any) -> Study:
    names = ("learned", *(arms or ("rope",)))
    claims = {name: Claim(expect=expect, source="Su et al. 2021") for name in names[1:]} if expect else {}
    given = {"seeds": list(range(6)), "arms": {name: [] for name in names}, "claims": claims} | options
    return Study(name="position", question="Does it help?", baseline="learned", **given)


def judged(values: list[float | None], baseline: list[float | None] = BASELINE, **options: Any) -> dict[str, Any]:
    """The verdict on one arm against the baseline."""
    return judge(study(**options), arm("learned", baseline) + arm("rope", values))["arms"]["rope"]


def notes(*records: list[RunRecord], **options: Any) -> list[str]:
    arms = dict.fromkeys(record.arm for of_arm in records for record in of_arm if record.arm != "learned")
    return judge(study(*arms, **options), [record for of_arm in records for record in of_arm])["notes"]


def test_the_four_verdicts_in_words():
    assert (
        judged(LOWER)["sentence"]
        == "better by 0.021 nats per token (95% interval 0.017 to 0.025; 6 pairs), at equal tokens"
    )
    assert (
        judged(HIGHER)["sentence"]
        == "worse by 0.021 nats per token (95% interval 0.017 to 0.025; 6 pairs), at equal tokens"
    )
    assert judged(CLOSE)["sentence"] == (
        "equivalent within 0.01 nats per token (difference +0.0010, 95% interval −0.0017 to +0.0037; 6 pairs), "
        "at equal tokens"
    )
    assert judged(NOISY)["sentence"] == (
        "cannot tell (difference 0.00 nats per token, 95% interval −0.05 to +0.04; "
        "smallest effect that 6 seeds could see: 0.06), at equal tokens"
    )


@pytest.mark.parametrize(
    ("values", "verdict"), [(LOWER, "better"), (HIGHER, "worse"), (CLOSE, "equivalent"), (NOISY, "cannot tell")]
)
def test_the_verdict_is_the_first_word(values, verdict):
    found = judged(values)
    assert found["verdict"] == verdict
    assert found["sentence"].startswith(verdict)


def test_an_arm_s_figures():
    found = judged(LOWER, expect="better")
    differences = np.subtract(LOWER, BASELINE)
    assert found["effect"] == pytest.approx(differences.mean())
    assert found["p"] == found["p_holm"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert found["differences"] == pytest.approx(differences)
    assert found["mean"] - found["baseline_mean"] == pytest.approx(found["effect"])
    assert isinstance(found["interval"], list)
    assert (found["pairs"], found["seeds"], found["margin"]) == (6, [0, 1, 2, 3, 4, 5], 0.01)
    assert (found["runs"], found["unfinished"], found["diverged"], found["baseline_diverged"]) == (6, 0, 0, 0)
    assert found["claim"] == {"expect": "better", "source": "Su et al. 2021", "outcome": "confirmed"}
    assert judged(LOWER)["claim"] is None


def test_what_is_said_of_the_whole_study():
    records = arm("learned", BASELINE) + arm("rope", LOWER)
    found = judge(study(), records)
    assert {key: found[key] for key in found if key not in ("arms", "question", "study")} == {
        "metric": "val/loss",
        "rising": False,
        "baseline": "learned",
        "corpus": "c0ffee",
        "seeds": [0, 1, 2, 3, 4, 5],
        "match": "none",
        "match_by": "ffn",
        "hold": "tokens",
        "notes": [],
    }
    assert list(found["arms"]) == ["rope"]


def test_a_learning_rate_at_the_edge_of_the_grid_is_noted():
    arms = {name: {"points": [], "chosen": lr, "edge": lr == 0.01} for name, lr in (("learned", 0.001), ("rope", 0.01))}
    tuning = {"grid": [3e-4, 1e-3, 0.01], "arms": arms}
    found = judge(study(), [*arm("learned", BASELINE), *arm("rope", LOWER)], tuning)
    assert found["tuning"] == tuning
    assert found["notes"] == ["rope: its learning rate, 0.01, is at the grid's edge: a better one may lie beyond."]


@pytest.mark.parametrize(
    ("hold", "words"), [("flops", "at equal training FLOPs"), ("seconds", "at equal seconds of training")]
)
def test_a_sentence_says_what_was_held(hold, words):
    assert judged(LOWER, hold=hold)["sentence"].endswith(words)


def test_of_a_rising_metric_more_is_better():
    records = arm("learned", BASELINE) + arm("rope", HIGHER)
    for record in records:
        record.summary["metrics"] = {"val/accuracy": record.metric("val/loss")}
    found = judge(study(metric="val/accuracy", expect="not worse"), records)["arms"]["rope"]
    assert found["sentence"] == "better by 0.021 (95% interval 0.017 to 0.025; 6 pairs), at equal tokens"
    assert found["claim"]["outcome"] == "confirmed"


def test_holm_is_over_all_arms_of_the_study():
    weak = [value - by for value, by in zip(BASELINE, [0.03, -0.003, 0.025, 0.002, 0.02, 0.03], strict=True)]
    alone = judged(weak)
    assert alone["verdict"] == "better"
    records = arm("learned", BASELINE) + [run for name in ("rope", "alibi", "none") for run in arm(name, weak)]
    beside = judge(study("rope", "alibi", "none"), records)["arms"]["rope"]
    assert beside["p"] == alone["p"]
    assert beside["p_holm"] == pytest.approx(3 * alone["p"])
    assert beside["verdict"] == "cannot tell"


def test_under_no_effect_one_arm_in_twenty_is_called_better_or_worse():
    generator, wrong, total = np.random.default_rng(0), 0, 600
    for _ in range(total):
        values = generator.normal(3.4, 0.5, (2, 6))
        wrong += judged(values[1].tolist(), values[0].tolist())["verdict"] in ("better", "worse")
    assert stats.binomtest(wrong, total, 0.05).pvalue > 1e-3


SMALL = [value + 0.002 + by for value, by in zip(BASELINE, [0.001, -0.001, 0.0005, 0, 0.0003, -0.0006], strict=True)]
HALF = [value + by for value, by in zip(BASELINE, [-0.04, -0.02, 0.01, -0.05, -0.03, 0.02], strict=True)]
EDGE = [base + (high - base) / 2 for base, high in zip(BASELINE, HIGHER, strict=True)]  # worse by the margin, about
RIVALS = {"lower": LOWER, "higher": HIGHER, "close": CLOSE, "noisy": NOISY, "small": SMALL, "half": HALF, "edge": EDGE}


@pytest.mark.parametrize(
    ("expect", "outcomes"),
    [
        ("better", "confirmed refuted refuted open refuted open refuted"),
        ("worse", "refuted confirmed refuted open confirmed open confirmed"),
        ("equivalent", "refuted refuted confirmed open confirmed open open"),
        ("not worse", "confirmed refuted confirmed open confirmed confirmed refuted"),
        ("report", "reported reported reported reported reported reported reported"),
    ],
)
def test_what_becomes_of_a_claim(expect, outcomes):
    found = [judged(values, expect=expect)["claim"]["outcome"] for values in RIVALS.values()]
    assert dict(zip(RIVALS, found, strict=True)) == dict(zip(RIVALS, outcomes.split(), strict=True))


def test_a_small_difference_that_is_there_is_within_the_margin_too():
    found = judged(SMALL, expect="equivalent")
    assert found["verdict"] == "worse"
    assert "equivalent within 0.01 nats per token" in found["sentence"]


@pytest.mark.parametrize("values", [LOWER, CLOSE])
def test_who_diverges_more_is_neither_better_nor_equivalent(values):
    found = judged([*values[:5], DIVERGED], expect="not worse")
    assert found["verdict"] == "cannot tell"
    assert (
        "of 6 seeds, 1 diverged only in this arm and 0 only in the baseline; where both finished, " in found["sentence"]
    )
    assert (found["pairs"], found["diverged"], found["baseline_diverged"]) == (5, 1, 0)
    assert found["claim"]["outcome"] == "open"


def test_who_diverges_more_may_be_worse():
    assert judged([*HIGHER[:5], DIVERGED])["verdict"] == "worse"
    assert judged(HIGHER, [*BASELINE[:5], DIVERGED])["verdict"] == "cannot tell"


def test_where_the_baseline_diverges_more_the_arm_may_be_better():
    assert judged(LOWER, [*BASELINE[:5], DIVERGED])["verdict"] == "better"
    assert judged(CLOSE, [*BASELINE[:5], DIVERGED], expect="equivalent")["verdict"] == "cannot tell"
    assert judged(CLOSE, [*BASELINE[:5], DIVERGED], expect="equivalent")["claim"]["outcome"] == "open"


def test_as_many_divergences_on_both_sides_leave_the_verdict_and_are_said():
    found = judged([DIVERGED, *LOWER[1:]], [DIVERGED, *BASELINE[1:]])
    assert found["verdict"] == "better"
    assert found["sentence"].endswith("; diverged: 1 of 6 runs, and 1 of 6 of the baseline")


def test_six_divergences_to_none_decide():
    values, steady = [*LOWER, *[DIVERGED] * 6], BASELINE * 2
    found = judged(values, steady, expect="equivalent")
    assert (found["verdict"], found["claim"]["outcome"]) == ("worse", "refuted")
    assert found["p_diverged"] == pytest.approx(2**-5)
    assert found["sentence"].startswith(
        "worse: of 12 seeds, 6 diverged only in this arm and 0 only in the baseline (exact McNemar p 0.031); "
        "where both finished, better by 0.021 nats per token"
    )
    alike = judged([*CLOSE, *[DIVERGED] * 6], steady, expect="equivalent")
    assert (alike["verdict"], alike["claim"]["outcome"]) == ("worse", "refuted")
    found = judged(steady, values, expect="not worse")
    assert (found["verdict"], found["claim"]["outcome"]) == ("better", "confirmed")
    assert judged([*LOWER, *[DIVERGED] * 5], BASELINE * 2)["verdict"] == "cannot tell"


def test_an_arm_that_always_diverges_is_shown():
    found = judged([DIVERGED] * 6)
    assert found["verdict"] == "worse"
    assert "no pair of finished runs" in found["sentence"]
    assert (found["effect"], found["interval"], found["p_holm"], found["mean"]) == (None, None, None, None)


def test_a_baseline_that_always_diverged_is_still_reported():
    assert judged(BASELINE, [DIVERGED] * 6)["verdict"] == "better"
    assert judged([DIVERGED] * 6, [DIVERGED] * 6)["verdict"] == "cannot tell"


def test_a_finished_run_whose_metric_is_not_finite_has_diverged():
    found = judged([*LOWER[:5], float("nan")])
    assert (found["diverged"], found["verdict"]) == (1, "cannot tell")


@pytest.mark.parametrize(
    ("values", "baseline"),
    [
        (LOWER, BASELINE),
        ([DIVERGED] * 6, BASELINE),
        ([3.1], BASELINE),
        ([float("inf"), 3.1], BASELINE),
        (BASELINE, BASELINE),
    ],
)
def test_the_verdict_is_strict_json(values, baseline):
    found = judge(study(expect="equivalent"), arm("learned", baseline) + arm("rope", values))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_identical_runs_are_equivalent():
    found = judged(BASELINE)
    assert (found["verdict"], found["effect"], found["interval"], found["p"]) == ("equivalent", 0, [0, 0], 1)


def one_configuration(values: list[float | None]) -> list[RunRecord]:
    records = arm("learned", BASELINE) + arm("again", values)
    for record in records:
        record.config["model"] = {"name": "same"}
        record.config["callbacks"] = {"checkpoint": {"dirpath": record.config["run_dir"]}, "progress": {}}
    return records


@pytest.mark.parametrize(
    ("values", "verdict"), [(BASELINE, "equivalent"), (LOWER, "cannot tell"), (NOISY, "cannot tell")]
)
def test_one_configuration_under_two_names_is_never_better(values, verdict):
    found = judge(study("again"), one_configuration(values))
    assert found["arms"]["again"]["verdict"] == verdict
    assert found["notes"] == ["again has the same configuration as learned (A/A): any difference is noise."]


def test_one_configuration_that_diverges_under_one_name_only_is_not_worse():
    found = judge(study("again"), one_configuration([DIVERGED] * 6))["arms"]["again"]
    assert (found["verdict"], found["p_diverged"]) == ("cannot tell", 2**-5)


def test_another_callback_is_another_configuration():
    records = one_configuration(LOWER)
    for record in records[:6]:
        record.config["callbacks"]["averaging"] = {}
    assert judge(study("again"), records)["arms"]["again"]["verdict"] == "better"


def test_few_pairs_are_screening():
    assert notes(arm("learned", BASELINE[:3]), arm("rope", LOWER[:3]), seeds=[0, 1, 2]) == [
        "rope: only a screening, with 3 pairs: an exact sign-flip test cannot give p below 0.25."
    ]
    said = notes(arm("learned", BASELINE[:5]), arm("rope", LOWER[:5]), arm("none", HIGHER[:5]), seeds=[0, 1, 2, 3, 4])
    assert said == ["rope, none: only a screening, with 5 pairs: an exact sign-flip test cannot give p below 0.0625."]


def test_fewer_than_two_pairs_cannot_tell():
    records = arm("learned", BASELINE[:1]) + arm("rope", LOWER[:1])
    found = judge(study(seeds=[0]), records)
    assert found["arms"]["rope"]["verdict"] == "cannot tell"
    assert (
        found["arms"]["rope"]["sentence"]
        == "cannot tell (difference −0.024 nats per token from a single pair), at equal tokens"
    )
    assert found["notes"] == ["rope: fewer than two pairs, so nothing can be tested."]


def test_unequal_seeds_are_named():
    said = notes(
        arm("learned", BASELINE + BASELINE[:1]), arm("rope", LOWER + LOWER[:2], first=1), seeds=list(range(10))
    )
    assert said == [
        "rope: seeds left out because only rope has them: 7, 8.",
        "rope: seeds left out because only learned has them: 0.",
        "Seeds without a run that finished or diverged: 9.",
    ]
    assert "Seeds that the study does not list, but that are counted: 5." in notes(
        arm("learned", BASELINE), arm("rope", LOWER), seeds=[0, 1, 2, 3, 4]
    )


def test_runs_of_another_corpus_are_paired_and_called_not_comparable():
    other = {"corpus": {"fingerprint": "decaf"}}
    records = arm("learned", BASELINE), arm("rope", LOWER[:4]) + arm("rope", LOWER[4:], 4, **other)
    assert notes(*records) == ["rope: not comparable: its corpus is decaf (2 runs), but learned has c0ffee."]
    assert judge(study(), [*records[0], *records[1]])["arms"]["rope"]["pairs"] == 6


@pytest.mark.parametrize(
    ("summary", "note"),
    [
        ({"git": {"revision": "99", "dirty": False}}, "The runs have different git revisions: 6 1234abcd, 6 99."),
        ({"git": None}, "The runs have different git revisions: 6 1234abcd, 6 unknown."),
        (
            {"git": {"revision": "1234abcd", "dirty": True}},
            "6 of 12 runs used code with uncommitted changes, which the git revision does not show.",
        ),
        ({"versions": {"torch": "2.12.0"}}, "The runs have different versions of torch: 6 2.13.0, 6 2.12.0."),
        (
            {"machine": {"platform": "Linux", "threads": 2, "gpu": "H100"}},
            "The runs have different machines: 6 Linux with 2 threads, 6 H100 with 2 threads.",
        ),
    ],
)
def test_other_code_and_other_machines_are_named(summary, note):
    assert notes(arm("learned", BASELINE), arm("rope", LOWER, **summary)) == [note]


def with_config(records: list[RunRecord], **config: Any) -> list[RunRecord]:
    return [replace(record, config={**record.config, **config}) for record in records]


def test_runs_of_several_studies_are_named():
    others = with_config(arm("rope", LOWER), study={"name": "position", "arm": "rope"})
    assert notes(arm("learned", BASELINE), others) == ["The runs belong to different studies: 6 none, 6 position."]


def test_runs_of_one_arm_that_are_not_alike_are_named():
    rope = arm("rope", LOWER)
    rope = [*rope[:5], *with_config(rope[5:], optimizer={"lr": 0.1})]
    (note,) = notes(arm("learned", BASELINE), rope)
    assert note == "rope: its runs have different settings: optimizer is None in one and {'lr': 0.1} in another."


def test_a_difference_is_at_equal_tokens_only_where_tokens_are_equal():
    trainer = {"accumulate_grad_batches": 1, "devices": 1, "num_nodes": 1}
    sized = [
        with_config(arm(name, values, steps=250), data={"batch_size": rows, "context": 256}, trainer=trainer)
        for name, values, rows in (("learned", BASELINE, 16), ("rope", LOWER, 8))
    ]
    found = judge(study(), [*sized[0], *sized[1]])
    assert found["arms"]["rope"]["sentence"].endswith("at unequal tokens")
    assert found["notes"] == ["The runs took unequal numbers of tokens, 512k to 1.02M."]
    records = [*sized[0], *sized[1]]
    for record in records:
        record.summary["training_flops_per_token"] = 1e6 if record.arm == "learned" else 2e6
    by_flops = judge(study(hold="flops"), records)
    assert by_flops["arms"]["rope"]["sentence"].endswith("at equal training FLOPs") and not by_flops["notes"]
    records[0].summary["steps"] = 200
    by_flops = judge(study(hold="flops"), records)
    assert by_flops["arms"]["rope"]["sentence"].endswith("at unequal training FLOPs")
    assert by_flops["notes"] == ["The runs took unequal numbers of training FLOPs, 819G to 1.02T."]


def test_runs_that_took_unequal_seconds_are_named():
    trainer = {"accumulate_grad_batches": 1, "devices": 1, "num_nodes": 1}
    records = [
        record
        for name, values, rate in (("learned", BASELINE, 1024), ("rope", LOWER, 512))
        for record in with_config(
            arm(name, values, steps=10, speed={"train_tokens_per_s": rate}),
            data={"batch_size": 4, "context": 256},
            trainer=trainer,
        )
    ]
    found = judge(study(hold="seconds"), records)
    assert found["arms"]["rope"]["sentence"].endswith("at equal seconds of training")
    (note,) = found["notes"]
    assert note.endswith("the runs themselves took unequal times: learned 10 s, rope 20 s each.")


def test_what_was_decided_after_the_runs_is_named():
    def made(name: str, values: list[float], **node: Any) -> list[RunRecord]:
        given = {"name": "position", "arm": name, "metric": "val/loss", "margin": 0.01} | node
        return with_config(arm(name, values), study=given)

    claims = {"rope": {"expect": "equivalent", "source": None}}
    learned, rope = made("learned", BASELINE), made("rope", CLOSE, claims=claims)
    assert notes(learned, rope, claims={"rope": Claim(expect="equivalent")}) == []
    assert notes(learned, rope, margin=5.0) == ["The margin, 5, was chosen after the runs, which were made with 0.01."]
    assert notes(learned, rope, claims={"rope": Claim(expect="better")}) == [
        "rope: the claim about it was changed after the runs."
    ]
    (note,) = notes(made("learned", BASELINE, metric="val/bpb"), made("rope", CLOSE, metric="val/bpb"))
    assert note.startswith("The runs were made to be judged by val/bpb, not by val/loss")


def test_a_task_that_no_run_has_learnt_is_named():
    def guessed(name: str, accuracy: float) -> list[RunRecord]:
        corpus = {"fingerprint": "c0ffee", "chance": 1 / 32}
        return arm(name, BASELINE, corpus=corpus, metrics={"val/loss": 3.4, "val/accuracy": accuracy})

    (note,) = notes(guessed("learned", 0.033), guessed("rope", 0.03))
    assert note == "No run's accuracy is far above chance, 0.0312: none has learnt the task."
    assert notes(guessed("learned", 0.033), guessed("rope", 0.9)) == []


def test_arms_that_cannot_be_tested_make_no_effect_harder_to_see():
    alone = judge(study(), arm("learned", BASELINE) + arm("rope", NOISY))["arms"]["rope"]
    beside = judge(study("rope", "none"), arm("learned", BASELINE) + arm("rope", NOISY) + arm("none", LOWER[:1]))
    assert (beside["arms"]["rope"]["mde"], beside["arms"]["rope"]["p_holm"]) == (alone["mde"], alone["p_holm"])


def test_that_holm_takes_a_verdict_away_is_said():
    barely = [value + by for value, by in zip(BASELINE, [0.030, 0.001, 0.022, 0.004, 0.026, 0.002], strict=True)]
    arms = arm("learned", BASELINE) + arm("rope", barely)
    assert judge(study(), arms)["arms"]["rope"]["verdict"] == "worse"
    said = judge(study("rope", "none"), arms + arm("none", NOISY))["arms"]["rope"]
    assert said["verdict"] == "cannot tell" and said["sentence"].endswith("after correction for 2 arms (Holm)")


def test_of_two_runs_of_one_seed_the_last_finished_is_used():
    values = {"2_b": 9.0, "10_a": LOWER[0]}
    again = [
        RunRecord(Path("runs") / name, "rope", 0, "finished", {}, run("rope", 0, v).summary)
        for name, v in values.items()
    ]
    crashed = RunRecord(Path("runs/11_c"), "rope", 0, "failed", {}, {})
    records = [*arm("learned", BASELINE), *again[::-1], crashed, *arm("rope", LOWER)[1:]]
    found = judge(study(), records)
    assert found["arms"]["rope"]["differences"][0] == pytest.approx(LOWER[0] - BASELINE[0])
    assert found["arms"]["rope"]["runs"] == 6
    assert found["notes"] == ["rope, seed 0: 3 runs (2 finished, 1 failed); the last finished one is used: runs/10_a."]


def test_unfinished_runs_are_counted():
    halted = [run("rope", 6, status="failed"), run("rope", 7, status="running"), run("rope", 8, status="running")]
    found = judge(study(), arm("learned", BASELINE) + arm("rope", LOWER) + halted)
    assert (found["arms"]["rope"]["runs"], found["arms"]["rope"]["unfinished"]) == (9, 3)
    assert found["notes"] == ["rope: runs left out because they did not finish: 2 running, 1 failed."]


def test_a_run_without_the_metric_and_a_run_of_no_arm_are_named():
    records = [*arm("learned", BASELINE), *arm("rope", LOWER), run("rope", 6, metrics={"val/bpb": 1.0}), run("gpt2", 0)]
    assert judge(study(), records)["notes"] == [
        "rope: runs left out because they finished without val/loss: seed 6.",
        "Runs left out because their arm is not in the study: 1 gpt2.",
    ]


def test_an_arm_without_runs_is_reported():
    found = judge(study("rope", "none"), arm("learned", BASELINE) + arm("rope", LOWER))
    assert found["arms"]["none"]["sentence"] == "cannot tell (no pair of finished runs), at equal tokens"
    assert found["arms"]["rope"]["p_holm"] == found["arms"]["rope"]["p"]


def test_a_metric_that_no_run_logged_is_refused():
    with pytest.raises(
        AblateError, match=r"^metric=val/los: no run logged it; did you mean 'val/loss'\? valid: val/loss$"
    ):
        judged(LOWER, metric="val/los")


@pytest.mark.parametrize("status", ["failed", "running"])
def test_a_baseline_of_which_no_run_finished_is_refused(status):
    records = [run("learned", seed, status=status) for seed in range(6)] + arm("rope", LOWER)
    with pytest.raises(AblateError, match=rf"^baseline=learned: none of its runs finished .*6 {status}.* valid: rope$"):
        judge(study(), records)
    with pytest.raises(
        AblateError, match=r"baseline=learned: none of its runs finished with val/loss \(its runs: none\)"
    ):
        judge(study(), [])

"""Averages over the sets of collections that papers name."""

import pytest

from prorank_jax.evaluation.averages import BEIR_13, BEIR_14, BEIR_18, FORUMS, averages

THIRTEEN = {
    "trec-covid",
    "nfcorpus",
    "nq",
    "hotpotqa",
    "fiqa",
    "arguana",
    "webis-touche2020",
    "quora",
    "dbpedia-entity",
    "scidocs",
    "fever",
    "climate-fever",
    "scifact",
}
FORUM_NAMES = "android english gaming gis mathematica physics programmers stats tex unix webmasters wordpress".split()


def figures(*names: str) -> dict[str, float]:
    return {name: float(place) for place, name in enumerate(names, 1)}


def test_the_named_sets_are_those_of_the_paper():
    assert {name.removeprefix("beir/") for name in BEIR_13} == THIRTEEN
    assert [len(names) for names in (BEIR_13, BEIR_14, BEIR_18)] == [13, 14, 18]
    assert sorted(FORUMS) == [f"beir/cqadupstack/{forum}" for forum in FORUM_NAMES]


def test_the_forums_count_as_one_collection():
    values = dict.fromkeys(BEIR_13, 0.5) | {forum: place / 10 for place, forum in enumerate(FORUMS)}
    found = averages(values)
    assert list(found) == ["CQADupStack", "BEIR-13", "BEIR-14"]
    assert found["CQADupStack"].value == pytest.approx(0.55)
    assert set(found["CQADupStack"].over) == set(FORUMS)
    assert found["BEIR-13"].value == 0.5
    assert found["BEIR-14"].value == pytest.approx((13 * 0.5 + 0.55) / 14)
    assert "beir/cqadupstack" in found["BEIR-14"].over


def test_folders_of_the_collections_that_are_not_public_complete_the_eighteen():
    values = dict.fromkeys([*BEIR_13, *FORUMS], 0.5) | dict.fromkeys(
        ["bioasq", "signal1m", "trec-news", "robust04"], 0.9
    )
    found = averages(values)
    assert list(found) == ["CQADupStack", "BEIR-13", "BEIR-14", "BEIR-18"]
    assert found["BEIR-18"].value == pytest.approx((14 * 0.5 + 4 * 0.9) / 18)


def test_other_sets_have_one_average_over_all():
    assert averages(figures("scifact")) == {}
    some = averages(figures("scifact", "beir/nfcorpus", "mine"))
    assert list(some) == ["all 3"]
    assert some["all 3"].value == 2
    assert some["all 3"].over == ("beir/scifact", "beir/nfcorpus", "mine")
    both = averages({"scifact": 0.2, "beir/scifact": 0.4})
    assert both["all 2"].value == pytest.approx(0.3) and set(both["all 2"].over) == {"scifact", "beir/scifact"}
    # Eleven forums are no CQADupStack.
    assert list(averages(figures(*FORUMS[:11]))) == ["all 11"]
    assert list(averages(figures(*FORUMS))) == ["CQADupStack"]
    with_more = averages(figures(*BEIR_13, "beir/msmarco"))
    assert list(with_more) == ["BEIR-13", "all 14"]
    assert with_more["BEIR-13"].value == 7

"""Results as studies make them, invented: rich, wild, 3H, with holes, of one row, and with hostile names."""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.evaluation.results import Results

METHODS = [  # id, label, knob, how good, seconds
    ("linear", "Linear average", None, 0.79, 0.21),
    ("task_arithmetic", "Task arithmetic", "lambda", 0.86, 0.24),
    ("ties", "TIES", "lambda", 0.872, 0.61),
    ("dare_ties", "DARE + TIES", "lambda", 0.868, 0.72),
    ("della", "DELLA", "lambda", 0.865, 0.8),
    ("breadcrumbs", "Model Breadcrumbs", "lambda", 0.861, 0.66),
    ("model_stock", "Model Stock", None, 0.81, 0.35),
    ("sce", "SCE", "select_topk", 0.84, 0.5),
    ("karcher", "Karcher mean", None, 0.795, 0.9),
    ("tsv", "TSV-Merge", "lambda", 0.905, 4.1),
    ("iso", "Iso-C", "lambda", 0.9, 3.8),
    ("consensus", "Consensus TA", "lambda", 0.881, 0.95),
]
STATISTICS = [
    ("regmean", "RegMean", "unlabelled", 0.93, 6.4),
    ("adamerging", "AdaMerging (layer-wise)", "unlabelled", 0.938, 48.0),
    ("fisher", "Fisher merging", "labelled", 0.87, 9.2),
    ("search", "Tuned by layer (CMA-ES)", "labelled", 0.949, 310.0),
]
EXPERTS = ["flip", "shift", "invert", "rotate", "noise", "blur"]


def recipe(method: str, value: float | None) -> dict[str, Any]:
    return {
        "merge_method": method if method in ("linear", "ties", "task_arithmetic", "dare_ties") else "task_arithmetic",
        "base_model": "family/base",
        "models": [{"model": f"family/experts/{name}", "parameters": {"weight": 1.0}} for name in EXPERTS],
        **({"parameters": {"lambda": value}} if value is not None else {}),
        "dtype": "float32",
    }


def mean(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + 1.1 * half}


def row(id_: str, label: str, group: str, scores: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": id_, "label": label, "group": group, "scores": scores, **more}


def mergebench() -> Results:
    random = np.random.default_rng(11)
    tasks = [{"name": name, "unit": "accuracy", "higher": True, "expert": name} for name in EXPERTS]
    tasks.append({"name": "upright", "unit": "accuracy", "role": "base"})

    def scores(level: float, spread: float = 0.03) -> dict[str, Any]:
        values = np.clip(level * 0.96 + spread * random.standard_normal(len(EXPERTS)), 0.05, 0.993)
        made = {
            t: {"value": float(v), "stderr": float((v * (1 - v) / 800) ** 0.5), "n": 800}
            for t, v in zip(EXPERTS, values, strict=True)
        }
        return made | {"upright": {"value": float(0.97 - 0.35 * abs(0.98 - level)), "stderr": 0.006, "n": 800}}

    def costs(
        merge: float | None,
        tune: float | None = None,
        model: int = 4_260_000,
        peak: int = 96_000_000,
        latency: float = 21e-6,
    ) -> dict[str, Any]:
        return {"seconds": {"merge": merge, "tune": tune, "latency": latency}, "bytes": {"model": model, "peak": peak}}

    def forgotten(level: float) -> dict[str, Any]:
        change = float(-0.28 * (1 - level) + 0.012 * random.standard_normal())
        return {"upright": {"value": change, "low": change - 0.012, "high": change + 0.013}}

    rows = [
        row("base", "Base", "baseline", scores(0.55, 0.08), mean=mean(0.574, 0.012), **costs(0.0)),
        row(
            "best_expert",
            "Best single expert",
            "baseline",
            scores(0.63, 0.12),
            mean=mean(0.655, 0.014),
            **costs(0.0),
            forgetting=forgotten(0.6),
        ),
        row(
            "ensemble",
            "Ensemble of outputs",
            "baseline",
            scores(0.84),
            mean=mean(0.866, 0.01),
            **costs(0.0, model=25_600_000, latency=130e-6),
        ),
        row(
            "soup",
            "Greedy soup",
            "baseline",
            scores(0.71),
            mean=mean(0.74, 0.013),
            recipe=recipe("linear", None),
            needs="labelled",
            **costs(0.9),
            forgetting=forgotten(0.7),
        ),
        row(
            "joint",
            "Joint training",
            "baseline",
            scores(0.985, 0.01),
            mean=mean(0.992, 0.005),
            needs="labelled",
            **costs(None),
            forgetting=forgotten(1.0),
        ),
    ]
    rows += [
        row(
            f"expert-{name}",
            f"Expert {name}",
            "expert",
            scores(0.6, 0.1) | {name: {"value": 0.985, "stderr": 0.004, "n": 800}},
            mean=mean(0.6 + 0.02 * i, 0.014),
            **costs(0.0),
            forgetting=forgotten(0.55 + 0.05 * i),
        )
        for i, name in enumerate(EXPERTS)
    ]
    for i, (id_, label, knob, level, cost) in enumerate(METHODS):
        value = round(0.2 + 0.07 * i, 2) if knob else None
        rows.append(
            row(
                id_,
                label,
                "merged",
                scores(level),
                mean=mean(level + 0.005 * i / 12, 0.011),
                needs="nothing",
                recipe=recipe(id_, value),
                tuned={"knob": knob, "value": value, "at_edge": id_ == "della", "evaluations": 12} if knob else None,
                forgetting=forgotten(level),
                **costs(cost, 12 * cost if knob else None, peak=int(96e6 + 9e6 * cost)),
            )
        )
    for id_, label, needs, level, cost in STATISTICS:
        rows.append(
            row(
                id_,
                label,
                "merged",
                scores(level),
                mean=mean(level, 0.009),
                needs=needs,
                recipe=recipe(id_, 0.3),
                forgetting=forgotten(level),
                **costs(cost, 3 * cost, peak=int(2.1e8)),
            )
        )
    layers = ["embed.weight", *(f"layers.{i}" for i in range(12)), "head.weight"]
    norms = [
        [float(n) for n in 0.4 + 0.35 * random.random(14) + 0.09 * np.arange(14) * (0.5 + 0.1 * i)] for i in range(6)
    ]
    cosine = np.clip(0.12 + 0.13 * random.standard_normal((6, 6)), -0.3, 0.8)
    cosine = (cosine + cosine.T) / 2
    cosine[0, 3] = cosine[3, 0] = 0.74
    cosine[1, 2] = cosine[2, 1] = -0.31
    conflict = 0.5 - cosine * 0.33
    np.fill_diagonal(cosine, 1.0)
    np.fill_diagonal(conflict, 0.0)
    return Results.model_validate(
        {
            "study": "mergebench",
            "title": "Sixteen ways to merge six experts of handwritten digits",
            "family": {"name": "digits", "variant": "views", "seed": 0, "regime": "in-basin"},
            "note": (
                "Every coefficient tuned on validation images with twelve evaluations a method; reported once on test "
                "images. Intervals: 95%, bootstrap over images."
            ),
            "versions": {
                "eutectic": "0.2.0",
                "python": "3.11.2",
                "torch": "2.9.1",
                "numpy": "2.3.5",
                "numba": "0.63.1",
            },
            "settings": {
                "evaluations per method": 12,
                "bootstrap samples": 2000,
                "grid": [0.1, 0.2, 0.3, 0.5, 0.7, 1.0],
                "full": False,
            },
            "tasks": tasks,
            "rows": rows,
            "pairs": [
                {"a": "tsv", "b": "iso", "difference": 0.005, "low": -0.004, "high": 0.014, "p": 0.27, "n": 4800},
                {
                    "a": "tsv",
                    "b": "consensus",
                    "difference": 0.024,
                    "low": 0.013,
                    "high": 0.035,
                    "p": 0.0004,
                    "n": 4800,
                },
                {"a": "tsv", "b": "ties", "difference": 0.033, "low": 0.021, "high": 0.044, "p": 0.0001, "n": 4800},
                {
                    "a": "linear",
                    "b": "ensemble",
                    "difference": -0.076,
                    "low": -0.089,
                    "high": -0.063,
                    "p": 0.0001,
                    "n": 4800,
                },
            ],
            "deltas": {
                "experts": EXPERTS,
                "layers": layers,
                "norms": norms,
                "cosine": cosine.tolist(),
                "sign_conflict": conflict.tolist(),
            },
            "claims": [
                {
                    "id": "c1",
                    "claim": "Every merge of all experts beats the best single expert.",
                    "test": "paired bootstrap over 4,800 images, against the best expert, Holm-corrected",
                    "result": "16 of 16 above, smallest difference 13.5 points [11.9, 15.1].",
                    "holds": True,
                },
                {
                    "id": "c2",
                    "claim": "TIES beats tuned task arithmetic.",
                    "test": "paired bootstrap, 4,800 images",
                    "result": "Difference 1.2 points [0.2, 2.1].",
                    "holds": True,
                },
                {
                    "id": "c3",
                    "claim": "Merging costs no more of the base's task than joint training does.",
                    "test": "forgetting on upright digits, best merge against joint training",
                    "result": "Joint training loses 0.3 points, the best merge 1.9.",
                    "holds": False,
                },
                {
                    "id": "c4",
                    "claim": "The ranking is the same for far-apart experts.",
                    "test": "Kendall's tau between regimes",
                    "result": "The far regime was not run in the quick form.",
                    "holds": None,
                },
            ],
            "warnings": ["DELLA: the best lambda, 0.48, lies on the edge of its grid; a better one may lie beyond."],
        }
    )


def in_the_wild() -> Results:
    random = np.random.default_rng(5)
    sizes = list(range(2, 13))
    curves = []
    for i, (label, start, slope) in enumerate(
        [
            ("Task arithmetic, tuned", 0.93, -0.012),
            ("Task arithmetic, scale 1", 0.74, -0.055),
            ("TIES, tuned", 0.9, -0.01),
            ("TSV-Merge, tuned", 0.95, -0.004),
            ("Iso-C, untuned", 0.7, -0.02),
        ]
    ):
        y = np.clip(start + slope * np.arange(11) + 0.015 * random.standard_normal(11), 0, 1)
        curves.append(
            {
                "label": label,
                "x": sizes,
                "y": y.tolist(),
                "low": np.clip(y - 0.06, 0, 1).tolist(),
                "high": np.clip(y + 0.05, 0, 1).tolist(),
                "title": "How often the merge beats its base",
                "x_title": "experts merged",
                "y_title": "P(merged > base)",
            }
        )
        gain = -0.01 + 0.3 * (y - 0.8) + 0.004 * i
        curves.append(
            {
                "label": label,
                "x": sizes,
                "y": gain.tolist(),
                "low": (gain - 0.02).tolist(),
                "high": (gain + 0.02).tolist(),
                "title": "Gain over the best single expert",
                "x_title": "experts merged",
                "y_title": "bits/byte saved",
            }
        )
    domains = ["english", "german", "french", "python", "arithmetic", "prose"]
    tasks = [{"name": d, "unit": "bits/byte", "higher": False} for d in domains]
    rows = []
    for id_, label, group, level in [
        ("base", "Base", "baseline", 2.41),
        ("ta", "Task arithmetic", "merged", 2.02),
        ("ties", "TIES", "merged", 2.05),
        ("tsv", "TSV-Merge", "merged", 1.97),
    ]:
        scores = {
            d: {"value": float(level + 0.2 * random.standard_normal()), "stderr": 0.021, "n": 256} for d in domains
        }
        rows.append(
            row(
                id_,
                label,
                group,
                scores,
                mean=mean(1.7 / level, 0.02),
                seconds={"merge": 1.4, "latency": 0.0031},
                bytes={"model": 3_900_000, "peak": 140_000_000},
                recipe=recipe("ties", 0.4) if group == "merged" else None,
            )
        )
    return Results.model_validate(
        {
            "study": "in-the-wild",
            "title": "Merging random subsets of twelve overlapping byte models",
            "family": [{"name": "bytes", "variant": "overlap", "seed": s} for s in range(3)],
            "tasks": tasks,
            "rows": rows,
            "curves": curves,
            "warnings": ["Subsets share experts: intervals are over experts and bases, not over subsets."],
        }
    )


def three_h() -> Results:
    tasks = [
        {"name": n, "unit": u, "higher": True}
        for n, u in (("help", "exact match"), ("honesty", "abstention rate"), ("harmlessness", "refusal rate"))
    ]
    random = np.random.default_rng(2)
    rows = [
        row(
            f"mix-{i}",
            f"Data mixture, {name}",
            "baseline",
            {
                t["name"]: {"value": float(v), "stderr": 0.018, "n": 400}
                for t, v in zip(tasks, random.uniform(0.6, 0.9, 3), strict=True)
            },
            mean=mean(0.8 + 0.03 * i, 0.02),
            needs="labelled",
        )
        for i, name in enumerate(["uniform", "by size", "searched"])
    ]
    for i, (id_, label, *_) in enumerate(METHODS):
        rows.append(
            row(
                id_,
                label,
                "merged",
                {
                    t["name"]: {"value": float(v), "stderr": 0.02, "n": 400}
                    for t, v in zip(tasks, random.uniform(0.45, 0.9, 3), strict=True)
                },
                mean=mean(0.62 + 0.02 * i, 0.022),
                recipe=recipe(id_, 0.4),
                seconds={"merge": 0.3 + 0.2 * i},
            )
        )
    return Results.model_validate(
        {
            "study": "3h",
            "title": "Help, honesty, harmlessness: twelve mergers against three mixtures",
            "family": {"name": "bytes", "variant": "3h", "seed": 1},
            "tasks": tasks,
            "rows": rows,
        }
    )


def with_holes() -> Results:
    plain = mergebench().to_json()
    for at, reason in (
        (12, "the endpoint answered 429 five times; retry with --resume"),
        (13, "the scorer gave no number for 3 of 800 samples"),
        (20, "test data are missing: data/blur.test.safetensors"),
    ):
        plain["rows"][at]["scores"]["blur"] = {"error": reason}
        plain["rows"][at]["mean"] = None
    plain["rows"][14]["scores"] = {
        task: {"error": "out of memory at merge: 9.2 GB needed, 8 GB allowed"} for task in EXPERTS
    }
    plain["rows"][14] |= {"mean": None, "forgetting": {}, "bytes": {}, "seconds": {}}
    plain["warnings"].append("Four models have no multi-task score; see Missing scores.")
    return Results.model_validate(plain)


def single() -> Results:
    return Results.model_validate(
        {
            "study": "mergebench",
            "title": "One row",
            "tasks": [{"name": "fr", "unit": "bits/byte", "higher": False}],
            "rows": [row("base", "Base", "baseline", {"fr": {"value": 2.34567}})],
        }
    )


HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">'


def hostile() -> Results:
    name = f"{HOSTILE}\u202e\u0007\u2028&amp;𝔘ñ"
    plain = mergebench().to_json()
    old = plain["tasks"][0]["name"]
    plain["title"] = plain["note"] = plain["study"] = name
    plain["tasks"][0]["name"] = name
    plain["tasks"][1]["unit"] = name
    for entry in plain["rows"]:
        entry["scores"] = {(name if task == old else task): score for task, score in entry["scores"].items()}
    plain["rows"][11] |= {"label": name}
    plain["rows"][11]["recipe"]["models"][0]["model"] = name
    plain["rows"][12]["scores"][name] = {"error": name}
    plain["deltas"]["experts"][0] = plain["deltas"]["layers"][0] = name
    plain["claims"][0] |= {"claim": name, "result": name, "test": name}
    plain["warnings"] += [name, "x" * 400]
    plain["settings"][name] = {"__proto__": name, "constructor": [name]}
    plain["versions"][name] = name
    plain["curves"] = [{"label": name, "x": [1, 2], "y": [1.0, None], "title": name, "x_title": name, "y_title": name}]
    plain["pairs"].append({"a": plain["rows"][11]["id"], "b": "base", "difference": 0.1})
    return Results.model_validate(plain)


def regimes() -> Results:
    random = np.random.default_rng(4)
    methods = ["average", "task_arithmetic", "ties", "tsv"]
    cells = []
    for regime in ("in-basin", "far"):
        for count, overlap, size in ((2, "low", 0.5), (2, "high", 1.0), (4, "low", 1.0), (6, "all", 2.0)):
            scores: dict[str, float | None] = {
                m: float(v) for m, v in zip(methods, random.uniform(0.6, 0.95, 4), strict=True)
            }
            winner = max(methods, key=lambda m: scores[m] or 0)
            scores["ties" if winner != "ties" else "tsv"] = None if size == 2.0 else 0.7
            cells.append(
                {
                    "family": "digits",
                    "regime": regime,
                    "base": 0.55,
                    "size": size,
                    "experts": EXPERTS[:count],
                    "overlap": overlap,
                    "cosine": 0.1 * count,
                    "winner": winner,
                    "scores": scores,
                }
            )
    return Results.model_validate(
        {**single().to_json(), "study": "regimes", "title": "Which method wins where", "regimes": cells}
    )


SAMPLES = {
    "regimes": regimes,
    "mergebench": mergebench,
    "in-the-wild": in_the_wild,
    "3h": three_h,
    "holes": with_holes,
    "single": single,
    "hostile": hostile,
}

"""Results of comparisons that never ran, for what judges them: arms with a test metric by seed."""


def made_result(name, metric, arms, parameters=None):
    """`arms` holds a list of values by arm, of the seeds 1, 2, ...; `parameters` a count by arm."""
    parameters = parameters or {}
    return {
        "name": name,
        "metrics": [metric],
        "baseline": next(iter(arms), None),
        "tokens_per_step": 1000,
        "recipe": {"task": {"kind": "language-modelling"}, "budget": "steps"},
        "comparisons": [],
        "arms": [
            {
                "name": arm,
                "steps": 2000,
                "learning_rate_note": "",
                "metrics": {metric: {"mean": sum(values) / len(values) if values else None}},
                "parameters": parameters.get(arm, 100),
                "parameters_without_embeddings": parameters.get(arm, 100),
            }
            for arm, values in arms.items()
        ],
        "runs": [
            {"arm": arm, "seed": seed, "chosen": True, "status": "finished", "test": {metric: value}}
            for arm, values in arms.items()
            for seed, value in enumerate(values, start=1)
        ],
    }


def around(mean, spread=0.06):
    """Five seeds with this mean; arms need other spreads, or they differ by a constant and there is nothing to test."""
    return [mean + spread * offset for offset in (-2.0, 1.0, 0.5, -0.5, 1.0)]


def swept_result(name, curves):
    """`curves` holds, by arm and seed, the final validation loss by learning rate; None is a run that diverged."""
    runs = [
        {
            "arm": arm,
            "seed": seed,
            "learning_rate": rate,
            "status": "diverged" if loss is None else "finished",
            "final": None if loss is None else {"val/loss": loss},
        }
        for arm, by_seed in curves.items()
        for seed, losses in by_seed.items()
        for rate, loss in losses.items()
    ]
    return {"name": name, "arms": [{"name": arm} for arm in curves], "runs": runs}

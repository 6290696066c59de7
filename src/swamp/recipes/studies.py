"""Ready-made studies. A study is a function, as a recipe is; its runs lie under studies/NAME."""

from swamp.runs import Study


def demo() -> Study:
    """IMP and SWAMP on the digits, two seeds each: a minute, to see what a study is."""
    return Study(recipe="digits-mlp", grid={"method": ["imp", "swamp"], "seed": [0, 1]})

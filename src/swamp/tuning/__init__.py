"""Tuning: search for the options of a run with Optuna, at equal training cost and on validation data only.

`optuna_studies` imports optuna, which is optional: it is imported where trials are drawn, and not before.
"""

"""How searches are run.

Black-box trials: `trainer.search`, `trainer.study`. On supernets: `gradient`, `sampled`, `streamed`, `staged`.
"""

"""How searches are run. Black-box trials: `trainer.search`, `trainer.study`; on supernets: `gradient`."""

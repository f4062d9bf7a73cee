"""The four steps of a pipeline (ingest, search, train, evaluate) and the dataset formats."""

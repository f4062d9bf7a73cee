"""One file in, steps out: the spec, the graph, the local runner and the `dalil` command."""

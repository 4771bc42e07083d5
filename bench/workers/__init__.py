"""One process per peer, each of which answers the lines of ``bench.workers.protocol``."""

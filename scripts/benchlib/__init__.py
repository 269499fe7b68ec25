"""The parts of scripts/bench: workload, processes, candidates and the three measurements."""

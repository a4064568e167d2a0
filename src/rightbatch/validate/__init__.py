"""Is the plan really better: paired runs, sweeps, branches and sharpness, with honest intervals."""

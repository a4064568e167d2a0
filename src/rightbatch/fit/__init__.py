"""From raw samples to small models with residual, interval and valid range; numpy, never torch."""

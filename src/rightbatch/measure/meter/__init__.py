"""Gradient noise measured inside somebody else's training step, and undone without a trace."""

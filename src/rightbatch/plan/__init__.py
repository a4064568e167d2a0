"""Pure arithmetic from fitted models to a plan whose every number has a reason."""

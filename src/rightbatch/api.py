"""The verbs as functions: measure, fit and plan in one call each."""

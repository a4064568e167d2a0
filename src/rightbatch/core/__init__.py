"""Records, units, errors and sources that every stage shares; imports no torch and no numpy."""

"""Which expert an input is for, and networks whose experts are mixed for each input."""

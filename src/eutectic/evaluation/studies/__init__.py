"""Studies: protocols that compare merge methods on families of experts, tuned on validation, reported on test."""

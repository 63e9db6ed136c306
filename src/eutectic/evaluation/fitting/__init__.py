"""Parameters of a merge learned from data: gradients of an objective go through the merge to the recipe's numbers.

blend        a planned recipe whose merge is a function of one open parameter
objective    what is minimised: the entropy of predictions (no labels), or the loss of the answers
fit          the loop: Adam, samples by seed and step, resumed where it was
fitted       the recipe with the learned numbers, and what it was learned from
"""

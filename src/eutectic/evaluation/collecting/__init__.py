"""Statistics of a model on data, for the methods that need them: one file a kind, in passes that fit the memory.

fisher       diagonal Fisher information of every parameter      parameter's shape
gradients    mean gradient of the loss                           parameter's shape
gram         X'X / rows of a linear layer's inputs               [in, in], under the name of its weight
activations  mean and mean square of a linear layer's inputs     [2, in], under the name of its weight
"""

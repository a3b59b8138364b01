"""What rides on an encoder for a task, and one file with both (Kerpicci et al., arXiv 2210.16611).

head.py      states of an utterance -> one vector -> class scores
margins.py   what scores the classes and is learnt by: cross entropy, angular and additive angular softmax
model.py     an encoder and its heads as one model
export.py    one file with encoder and heads
"""

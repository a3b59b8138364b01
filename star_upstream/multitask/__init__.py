"""A distilled encoder with a head for each of several tasks, fine-tuned jointly (Kerpicci et al., arXiv 2210.16611).

    recipe.py     what a fine-tuning is, as data
    losses.py     cross entropy, angular and additive angular softmax
    heads.py      states of an utterance -> one vector -> class scores; encoder and heads as one model
    data.py       corpora -> tasks with classes and splits; batches that alternate between tasks
    store.py      decoded waveforms and states of a frozen encoder, kept on disk
    learning.py   the training, and what starts, resumes and ends it
    evaluate.py   accuracy and equal error rate with intervals
    export.py     one file with encoder and heads
    table.py      runs beside the published rows
    grid.py       many runs from one command
"""

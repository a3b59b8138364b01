"""Features to heads: training for every learning rate and fold at once, and what several tasks' heads share."""
